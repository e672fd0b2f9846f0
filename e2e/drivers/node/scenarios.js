// What applications do with node-postgres in its default settings, through a pooler in transaction mode.
//
// The connection is found by libpq's own variables. The only argument is the name of a scenario; the exit status says whether
// it went well, and an assertion or the driver's own error what did not.
'use strict'

const assert = require('node:assert/strict')
const { Client, Pool } = require('pg')

const CLIENTS = 8 // more than the pool has server connections
const ROUNDS = 20

const numbers = (n) => Array.from({ length: n }, (_, i) => i)

async function connected(work) {
  const client = new Client()
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

const together = (work, clients = CLIENTS) => Promise.all(numbers(clients).map((n) => connected((client) => work(client, n))))

const value = async (client, text, values) => Object.values((await client.query(text, values)).rows[0])[0]

async function eventually(what, holds) {
  for (const until = Date.now() + 20000; !(await holds()); ) {
    assert(Date.now() < until, `not seen within 20 s: ${what}`)
  }
}

const fails = (promise, code) => assert.rejects(promise, (e) => e.code === code)

const scenarios = {
  // Named queries: each client's own text under a name that all have, and one text that all have.
  async prepared() {
    await together(async (client, number) => {
      for (const i of numbers(ROUNDS)) {
        const own = await client.query({ name: 'own', text: `select $1::int + ${number * 1000} as v`, values: [i] })
        assert.equal(own.rows[0].v, number * 1000 + i)
        const same = await client.query({ name: `same of ${number}`, text: 'select $1::text as same_for_all', values: [`${number}-${i}`] })
        assert.equal(same.rows[0].same_for_all, `${number}-${i}`)
        assert.equal(await value(client, 'select $1::int', [i]), i) // the unnamed statement
      }
      // Prepared indeed: the server connection of this transaction has the text.
      await client.query('begin')
      await client.query({ name: `same of ${number}`, text: 'select $1::text as same_for_all', values: ['x'] })
      const count = await value(client, "select count(*)::int from pg_prepared_statements where statement = 'select $1::text as same_for_all'")
      await client.query('commit')
      assert(count >= 1, 'the statement is not prepared')
    })
  },

  // Errors inside transactions, savepoints, and what is left of them for others; by a pool of the driver's.
  async transactions() {
    const pool = new Pool({ max: CLIENTS })
    await pool.query('create table node_rows (client int, n int, primary key (client, n))')
    await Promise.all(
      numbers(2 * CLIENTS).map(async (number) => {
        for (const i of numbers(ROUNDS)) {
          const client = await pool.connect()
          try {
            await client.query('begin')
            const insert = { name: 'insert', text: 'insert into node_rows values ($1, $2)', values: [number, i] }
            await client.query(insert)
            await client.query('savepoint s')
            await fails(client.query(insert), '23505')
            await fails(client.query('select 1'), '25P02')
            await client.query('rollback to s')
            assert.equal(await value(client, 'select count(*)::int from node_rows where client = $1', [number]), i + 1)
            await client.query('commit')
            await client.query('begin')
            await client.query({ name: 'insert', text: 'insert into node_rows values ($1, $2)', values: [number, 1000 + i] })
            await fails(client.query('select $1::int / 0', [i]), '22012')
            await client.query('rollback')
          } finally {
            client.release()
          }
        }
      })
    )
    assert.equal((await pool.query('select count(*)::int as n from node_rows')).rows[0].n, 2 * CLIENTS * ROUNDS)
    await pool.end()
  },

  // A statement that fails to be prepared leaves its name free, and one that is dropped can be prepared again.
  async names() {
    await together(async (client) => {
      for (const i of numbers(5)) {
        await fails(client.query({ name: 'later', text: 'select nothing_of_that_name' }), '42703')
        const r = await client.query({ name: `later ${i}`, text: 'select $1::int as v', values: [i] })
        assert.equal(r.rows[0].v, i)
      }
      await client.query('deallocate "later 0"')
      await fails(client.query({ name: 'later 0', text: 'select $1::int as v', values: [1] }), '26000') // the driver believes that it is there
      await client.query({ name: 'later 1', text: 'select $1::int as v', values: [1] })
    })
  },

  // What one session sets, makes, locks and listens to is not another's.
  async sessions() {
    const [a, b, c] = [new Client(), new Client(), new Client()]
    const heard = [[], [], []]
    for (const [n, client] of [a, b, c].entries()) {
      client.on('notification', (m) => heard[n].push(m.payload))
      await client.connect()
    }
    const fresh = await value(b, 'show work_mem')
    await a.query("set work_mem to '7MB'; set search_path to pg_catalog, public")
    for (const _ of numbers(5)) {
      assert.equal(await value(a, 'show work_mem'), '7MB')
      assert.equal(await value(a, 'show search_path'), 'pg_catalog, public')
      for (const other of [b, c]) {
        assert.equal(await value(other, 'show work_mem'), fresh)
        assert.equal(await value(other, 'show search_path'), '"$user", public')
      }
    }
    await a.query('create temp table mine as select 1 as n')
    await a.query('select pg_advisory_lock($1)', [7002])
    for (const _ of numbers(5)) {
      assert.equal(await value(a, 'select n from mine'), 1)
      // One of them only: each asks for a place among the clients that keep a connection, and half of the pool may.
      assert.equal(await value(b, "select to_regclass('pg_temp.mine') is null"), true)
      assert.equal(await value(b, 'select pg_try_advisory_lock($1)', [7002]), false)
    }
    await a.query('listen node_channel')
    for (const _ of numbers(3)) await b.query("select pg_notify('node_channel', $1)", ['hello'])
    // It comes by itself, without a query.
    await eventually('the notifications', () => new Promise((done) => setImmediate(() => done(heard[0].length >= 3))))
    await Promise.all([a, b, c].map((client) => client.query('select 1')))
    assert.deepEqual(heard, [['hello', 'hello', 'hello'], [], []])
    await Promise.all([a, b, c].map((client) => client.end()))
    await connected(async (d) => {
      for (const _ of numbers(5)) {
        assert.equal(await value(d, 'show work_mem'), fresh)
        assert.equal(await value(d, "select to_regclass('pg_temp.mine') is null"), true)
      }
      await eventually('the lock of a client that has left is free', () => value(d, 'select pg_try_advisory_lock($1)', [7002]))
    })
  },

  // A result of 50 MB while others use the pool.
  async large_result() {
    await together(async (client, number) => {
      if (number === 0) {
        const { rows } = await client.query("select n, repeat('x', 5000) as body from generate_series(1, 10000) n")
        assert.equal(rows.length, 10000)
        assert(rows.every((row) => row.body.length === 5000))
        return
      }
      for (const i of numbers(50)) assert.equal(await value(client, 'select $1::int', [i]), i)
    })
  },

  // Only the query of the client that is meant is canceled; both go on.
  async cancel() {
    await together(async (client, number) => {
      if (number === 1) {
        await client.query('select pg_sleep(1)')
      } else if (number === 0) {
        const pid = await value(client, 'select 1') // it is connected
        assert.equal(pid, 1)
        const asleep = client.query('select pg_sleep(60) as of_node')
        const refused = fails(asleep, '57014')
        await connected((watcher) =>
          eventually('the query runs', async () => (await value(watcher, "select count(*)::int from pg_stat_activity where query like '%of_node' and wait_event = 'PgSleep'")) === 1)
        )
        new Client().cancel(client, client.activeQuery)
        await refused
      }
      assert.equal(await value(client, 'select $1::int', [7]), 7)
    }, 3)
  },
}

const name = process.argv[2]
if (name === '--version') {
  console.log('pg', require('pg/package.json').version, 'node', process.version)
} else {
  scenarios[name]().then(
    () => console.log('passed'),
    (e) => {
      console.error(e)
      process.exit(1)
    }
  )
}
