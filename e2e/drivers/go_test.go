package drivers

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/lib/pq"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// execModes are all of pgx's: some keep prepared statements, or the unnamed one, from one transaction to the next.
var execModes = map[string]pgx.QueryExecMode{
	"simple protocol": pgx.QueryExecModeSimpleProtocol,
	"exec":            pgx.QueryExecModeExec,
	"cache statement": pgx.QueryExecModeCacheStatement,
	"cache describe":  pgx.QueryExecModeCacheDescribe,
	"describe exec":   pgx.QueryExecModeDescribeExec,
}

func TestPgxWorksInTransactionModeInEveryExecMode(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "default_pool_size: 4", "max_prepared_statements: 5")
	for name, mode := range execModes {
		t.Run(name, func(t *testing.T) { workWithPgx(t, s.url("postgres", "x"), mode) })
	}
}

func TestPgxWorksInSessionModeInEveryExecMode(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "pool_mode: session", "default_pool_size: 20")
	for name, mode := range execModes {
		t.Run(name, func(t *testing.T) { workWithPgx(t, s.url("postgres", "x"), mode) })
	}
}

func TestPgxPreparesWithinOneTransaction(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "default_pool_size: 2")
	ctx := t.Context()
	c, err := pgx.Connect(ctx, s.url("postgres", "x")+"&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	tx, err := c.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Prepare(ctx, "within", "select $1::int + 1"); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		var got int
		if err := tx.QueryRow(ctx, "within", i).Scan(&got); err != nil || got != i+1 {
			t.Fatalf("got %d, %v; want %d", got, err, i+1)
		}
	}
	if _, err := tx.Exec(ctx, "deallocate within"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

// workWithPgx does what applications do, from many goroutines at once.
func workWithPgx(t *testing.T, url string, mode pgx.QueryExecMode) {
	ctx := t.Context()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.DefaultQueryExecMode = mode
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	table := pgx.Identifier{strings.ReplaceAll("t "+t.Name(), "/", " ")}.Sanitize()
	if _, err := pool.Exec(ctx, "create table "+table+" (id int, body text, at timestamptz)"); err != nil {
		t.Fatal(err)
	}
	n, err := pool.CopyFrom(ctx, pgx.Identifier{strings.ReplaceAll("t "+t.Name(), "/", " ")}, []string{"id", "body"},
		pgx.CopyFromSlice(1000, func(i int) ([]any, error) { return []any{i, strings.Repeat("x", i)}, nil }))
	if err != nil || n != 1000 {
		// COPY prepares a statement of its own to learn the types, which only a session keeps.
		t.Fatalf("copied %d rows, %v; want 1000", n, err)
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 20 {
				if err := transaction(ctx, pool, table, worker*100+i); err != nil {
					t.Errorf("worker %d: %v", worker, err)
					return
				}
			}
		})
	}
	wg.Wait()
	var sum int
	if err := pool.QueryRow(ctx, "select count(*) from "+table+" where at is not null").Scan(&sum); err != nil || sum != 320 {
		t.Fatalf("%d rows were written, %v; want 320", sum, err)
	}
	var pgErr *pgconn.PgError
	if _, err := pool.Exec(ctx, "select 1/0"); !errors.As(err, &pgErr) || pgErr.Code != "22012" {
		t.Fatalf("division by zero: %v", err)
	}
}

func transaction(ctx context.Context, pool *pgxpool.Pool, table string, id int) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into "+table+" values ($1, $2, now())", id, "body"); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue("select $1::int", id)
		batch.Queue("select $1::text", "a")
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		var body string
		return tx.QueryRow(ctx, "select body from "+table+" where id = $1 and at is not null limit 1", id).Scan(&body)
	})
}

func TestLibPqWorksInTransactionMode(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "default_pool_size: 4")
	db, err := sql.Open("postgres", s.url("postgres", "x")+"&application_name=through+lib/pq")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(16)
	ctx := t.Context()
	if _, err := db.ExecContext(ctx, "create table libpq (id int primary key, body text)"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 20 {
				id := worker*100 + i
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := tx.ExecContext(ctx, "insert into libpq values ($1, $2)", id, "x"); err != nil {
					t.Error(err)
				}
				if i%5 == 0 {
					err = tx.Rollback()
				} else {
					err = tx.Commit()
				}
				if err != nil {
					t.Error(err)
				}
				var name string
				if err := db.QueryRowContext(ctx, "show application_name").Scan(&name); err != nil || name != "through lib/pq" {
					t.Errorf("application_name is %q, %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	var count int
	if err := db.QueryRowContext(ctx, "select count(*) from libpq").Scan(&count); err != nil || count != 16*16 {
		t.Fatalf("%d rows, %v; want %d", count, err, 16*16)
	}
	var pqErr *pq.Error
	if _, err := db.ExecContext(ctx, "insert into libpq values (1, 'again')"); !errors.As(err, &pqErr) || pqErr.Code != "23505" {
		t.Fatalf("a duplicate key: %v", err)
	}
}
