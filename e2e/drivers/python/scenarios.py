"""What applications do with psycopg 3 in its default settings, through a pooler in transaction mode.

The connection is found by libpq's own variables. The only argument is the name of a scenario; the exit status says whether it
went well, and an assertion or psycopg's own error what did not.
"""

import sys
import threading
import time

import psycopg
from psycopg import errors

CLIENTS = 8  # more than the pool has server connections
ROUNDS = 20  # well over prepare_threshold, which is 5


def connect(**options):
    return psycopg.connect(connect_timeout=20, **options)


def together(work, clients=CLIENTS):
    """Runs work(number) in as many threads at once and raises the first error of any."""
    failures = []

    def run(number):
        try:
            work(number)
        except BaseException as e:  # told by the main thread
            failures.append(e)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def value(conn, sql, parameters=None):
    return conn.execute(sql, parameters).fetchone()[0]


def prepared():
    """Each client's repeated statements are prepared, under names that are the same for all of them."""

    def work(number):
        with connect() as conn:
            assert conn.prepare_threshold == 5, conn.prepare_threshold
            for i in range(ROUNDS):
                # The first text differs between the clients, its name _pg3_0 does not.
                got = value(conn, f"select %s::int + {number * 1000} as of_client_{number}", [i])
                assert got == number * 1000 + i, (number, i, got)
                assert value(conn, "select %s::text as same_for_all", [f"{number}-{i}"]) == f"{number}-{i}"
                conn.commit()
            # Prepared indeed, not sent anew each time: the server connection of this transaction has the text.
            value(conn, "select %s::text as same_for_all", ["x"])
            assert value(conn, "select count(*) from pg_prepared_statements where statement = 'select $1::text as same_for_all'") >= 1

    together(work)


def more_prepared_than_kept():
    """psycopg keeps 100 statements and says DEALLOCATE for the one that it has not used for longest."""
    with connect(autocommit=True) as conn:
        for n in range(130):
            for i in range(3):
                assert conn.execute(f"select %s::int * {n}", [i], prepare=True).fetchone()[0] == i * n
        for n in range(130):
            assert value(conn, f"select %s::int * {n}", [7]) == 7 * n


def transactions():
    """Errors and rollbacks inside transactions, savepoints, and what is left of them for others."""
    with connect(autocommit=True) as conn:
        conn.execute("create table psycopg_rows (client int, n int, primary key (client, n))")

    def work(number):
        with connect() as conn:
            for i in range(ROUNDS):
                with conn.transaction():
                    conn.execute("insert into psycopg_rows values (%s, %s)", [number, i])
                    try:
                        with conn.transaction():  # a savepoint
                            conn.execute("insert into psycopg_rows values (%s, %s)", [number, i])
                        raise AssertionError("a duplicate key was taken")
                    except errors.UniqueViolation:
                        pass
                    assert value(conn, "select count(*) from psycopg_rows where client = %s", [number]) == i + 1
                try:
                    conn.execute("insert into psycopg_rows values (%s, %s)", [number, 1000 + i])
                    conn.execute("select %s::int / 0", [i])
                    raise AssertionError("a division by zero went well")
                except errors.DivisionByZero:
                    pass
                try:
                    conn.execute("select 1")
                    raise AssertionError("a failed transaction goes on")
                except errors.InFailedSqlTransaction:
                    pass
                conn.rollback()  # has psycopg drop what it has prepared, by DEALLOCATE ALL

    together(work)
    with connect() as conn:
        assert value(conn, "select count(*) from psycopg_rows") == CLIENTS * ROUNDS


def sessions():
    """What one session sets, makes, locks and listens to is not another's."""
    with connect(autocommit=True) as a, connect(autocommit=True) as b, connect(autocommit=True) as c:
        heard = {"a": [], "b": [], "c": []}
        for name, conn in (("a", a), ("b", b), ("c", c)):
            conn.add_notify_handler(lambda n, name=name: heard[name].append(n.payload))
        fresh = value(b, "show work_mem")
        a.execute("set work_mem to '7MB'")
        a.execute("set search_path to pg_catalog, public")
        for _ in range(5):
            assert value(a, "show work_mem") == "7MB"
            assert value(a, "show search_path") == "pg_catalog, public"
            for other in (b, c):
                assert value(other, "show work_mem") == fresh
                assert value(other, "show search_path") == '"$user", public'
        a.execute("create temp table mine as select 1 as n")
        a.execute("select pg_advisory_lock(7001)")
        for _ in range(5):
            assert value(a, "select n from mine") == 1
            # One of them only: each asks for a place among the clients that keep a connection, and half of the pool may.
            assert value(b, "select to_regclass('pg_temp.mine') is null")
            assert not value(b, "select pg_try_advisory_lock(7001)")
        a.execute("listen psycopg_channel")
        for _ in range(3):
            b.execute("select pg_notify('psycopg_channel', %s)", ["hello"])
        until = time.monotonic() + 20
        while len(heard["a"]) < 3 and time.monotonic() < until:
            a.execute("select 1")
            b.execute("select 1")
            c.execute("select 1")
        assert heard == {"a": ["hello"] * 3, "b": [], "c": []}, heard
    with connect(autocommit=True) as d:
        for _ in range(5):
            assert value(d, "show work_mem") == fresh
            assert value(d, "select to_regclass('pg_temp.mine') is null")
            # The lock is free once the server connection of the client that left is clean.
        until = time.monotonic() + 20
        while not value(d, "select pg_try_advisory_lock(7001)"):
            assert time.monotonic() < until, "the lock of a client that has left is still held"


def large_result():
    """A result of 50 MB, whole and by a cursor of the server's, while others use the pool."""

    def work(number):
        with connect() as conn:
            if number == 0:
                rows = conn.execute("select n, repeat('x', 5000) from generate_series(1, 10000) n").fetchall()
                assert len(rows) == 10000 and all(len(text) == 5000 for _, text in rows)
            elif number == 1:
                with conn.cursor("of_the_server") as cursor:
                    cursor.itersize = 500
                    cursor.execute("select n from generate_series(1, 20000) n")
                    assert sum(row[0] for row in cursor) == 20000 * 20001 // 2
            else:
                for i in range(50):
                    assert value(conn, "select %s::int", [i]) == i
                    conn.commit()

    together(work)


def copy():
    """COPY in both directions, an error in the data, and one of the program's."""
    with connect() as conn:
        conn.execute("create table psycopg_copy (n int, body text)")
        conn.commit()
        with conn.cursor() as cursor:
            with cursor.copy("copy psycopg_copy from stdin") as copying:
                for n in range(20000):
                    copying.write_row((n, f"line\t{n}\n" * 5))
        conn.commit()
        with conn.cursor() as cursor:
            with cursor.copy("copy psycopg_copy to stdout (format binary)") as copying:
                copying.set_types(["int4", "text"])
                rows = list(copying.rows())
        assert len(rows) == 20000 and rows[17] == (17, "line\t17\n" * 5), len(rows)
        conn.commit()
        try:
            with conn.cursor() as cursor, cursor.copy("copy psycopg_copy from stdin") as copying:
                copying.write(b"not a number\tx\n")
            raise AssertionError("wrong data was taken")
        except errors.InvalidTextRepresentation:
            conn.rollback()
        try:
            with conn.cursor() as cursor, cursor.copy("copy psycopg_copy from stdin") as copying:
                copying.write_row((1, "x"))
                raise KeyError("the program's own")  # psycopg says CopyFail
        except (KeyError, errors.QueryCanceled):
            conn.rollback()
        assert value(conn, "select count(*) from psycopg_copy") == 20000


def cancel():
    """Only the query of the connection that asks is canceled; both go on."""
    with connect(autocommit=True) as a, connect(autocommit=True) as b, connect(autocommit=True) as watcher:
        until = time.monotonic() + 20

        def run():
            try:
                a.execute("select pg_sleep(60) as of_a")
                raise AssertionError("nothing was canceled")
            except errors.QueryCanceled:
                pass

        def both(number):
            if number == 0:
                run()
            elif number == 1:
                b.execute("select pg_sleep(1) as of_b")
            else:
                while not value(watcher, "select count(*) from pg_stat_activity where query like '%of_a' and wait_event = 'PgSleep'"):
                    assert time.monotonic() < until, "the query does not run"
                a.cancel()

        together(both, 3)
        assert value(a, "select 1") == 1 and value(b, "select 2") == 2


def pipeline():
    """Several statements in one round trip, an error among them."""
    with connect(autocommit=True) as conn:
        for _ in range(10):
            with conn.pipeline():
                cursors = [conn.execute("select %s::int * 2", [i]) for i in range(30)]
                assert [c.fetchone()[0] for c in cursors] == [2 * i for i in range(30)]
        try:
            with conn.pipeline():
                conn.execute("select %s::int * 2", [1])
                conn.execute("select 1 / %s::int", [0])
                conn.execute("select %s::int * 2", [2])
            raise AssertionError("a division by zero went well")
        except errors.DivisionByZero:
            pass
        assert value(conn, "select %s::int * 2", [4]) == 8


SCENARIOS = {f.__name__: f for f in (prepared, more_prepared_than_kept, transactions, sessions, large_result, copy, cancel, pipeline)}

if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("psycopg", psycopg.__version__)
    else:
        SCENARIOS[sys.argv[1]]()
        print("passed")
