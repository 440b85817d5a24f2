//! The shared ledger's tables, by version.
//!
//! They lie in the database schema `wdt`. `wdt.migrations` says which of the [`MIGRATIONS`] were
//! made, each in a transaction of its own together with its row, by one process at a time. A
//! migration that was released is never changed; what is to change is a new one at the end.
//!
//! Each migration also says which is the *oldest* schema whose workers can still work with it, so
//! that a deploy can replace workers one by one. A worker that is older than that does not start.

use deadpool_postgres::Object;

use super::connect::DbError;
use crate::rules::dry_run::Mode;

/// Whoever holds this lock of the database makes migrations: "wdtledgr".
const MIGRATION_LOCK: i64 = 0x7764_746c_6564_6772;

/// The first makes schema 1 of an empty database, each next one the next schema of the one before;
/// with it the oldest schema whose workers can work with it.
const MIGRATIONS: &[(&str, i32)] = &[(FIRST, 1), (PAUSES, 1), (JOURNAL, 1)];

/// The schema of this version.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Texts are compared byte by byte (`COLLATE "C"`), which is faster, and which no later version of
/// the system's C library compares in another way.
///
/// - `orders` and `results` are the record. Rows are found by keys that rise with time where the
///   gateway's numbers do, and forgotten from the front by `id`. Updates touch no index, so they
///   leave little behind (`fillfactor`).
/// - `commands` has each command once: its results name it by a number, which keeps them small.
/// - `workers` and `holds` are who has what in hand. A hold lives as long as its worker's row, which
///   lives as long as the lease is renewed; whoever finds a lease over deletes both.
/// - `accounts`, `calls` and `queue` share out the minute, see `take_calls`.
const FIRST: &str = r#"
CREATE SEQUENCE wdt.numbers;      -- fences, workers and calls: no number is given twice

CREATE TABLE wdt.orders (
    id         bigint GENERATED ALWAYS AS IDENTITY,
    account    text COLLATE "C" NOT NULL,
    order_no   text COLLATE "C" NOT NULL,
    state      smallint NOT NULL, -- 0 waiting, 1 sent without a recorded answer, 2 ended
    attempts   integer NOT NULL,
    spent      integer NOT NULL,
    since      bigint NOT NULL,   -- ms since 1970, like every time of the record
    code       text,              -- the reason's code; null where ended as cancelled
    message    text,
    changed_at bigint NOT NULL,
    PRIMARY KEY (order_no, account)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX orders_by_id ON wdt.orders (id);

CREATE TABLE wdt.commands (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    account     text COLLATE "C" NOT NULL,
    command_id  text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,   -- of the orders that it was first claimed for
    claimed_at  bigint NOT NULL,
    PRIMARY KEY (command_id, account)
);
CREATE UNIQUE INDEX commands_by_id ON wdt.commands (id);

CREATE TABLE wdt.results (
    command     bigint NOT NULL,  -- commands.id
    order_no    text COLLATE "C" NOT NULL,
    code        text,
    message     text,
    attempts    integer NOT NULL,
    occurred_at bigint NOT NULL,
    PRIMARY KEY (command, order_no)
);

CREATE TABLE wdt.workers (
    id          bigint PRIMARY KEY,
    name        text NOT NULL,    -- for people: host and process
    lease_until timestamptz NOT NULL
);

CREATE TABLE wdt.holds (
    order_no text COLLATE "C" NOT NULL,
    account  text COLLATE "C" NOT NULL,
    fence    bigint NOT NULL,
    worker   bigint NOT NULL,     -- workers.id
    PRIMARY KEY (order_no, account)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX holds_by_worker ON wdt.holds (worker);

CREATE TABLE wdt.runs (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker   bigint NOT NULL,
    began_at bigint NOT NULL,
    ended    smallint NOT NULL    -- 0 not yet, 1 stopped or lived long enough, 2 died
);
CREATE TABLE wdt.trials (
    command    bytea PRIMARY KEY, -- a hash of its id and body
    died       integer NOT NULL,  -- so many trials ended with the worker's death
    worker     bigint,            -- by which it is on trial
    changed_at bigint NOT NULL
);
CREATE TABLE wdt.marks (
    restored_at bigint            -- when the database was last restored from a back-up
);
INSERT INTO wdt.marks VALUES (NULL);

CREATE TABLE wdt.accounts (
    account       text COLLATE "C" PRIMARY KEY,
    quiet_until   timestamptz NOT NULL DEFAULT '-infinity', -- nobody calls before
    careful_until timestamptz NOT NULL DEFAULT '-infinity', -- one call at a time before, slowly
    called_at     timestamptz NOT NULL DEFAULT '-infinity'  -- last
);
CREATE TABLE wdt.calls (
    id           bigint PRIMARY KEY,
    account      text COLLATE "C" NOT NULL,
    flies_until  timestamptz NOT NULL, -- then it is over, whatever became of who made it
    counts_until timestamptz NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX calls_by_account ON wdt.calls (account);
CREATE TABLE wdt.queue (          -- who asked for a call and has to wait
    account  text COLLATE "C" NOT NULL,
    worker   bigint NOT NULL,
    since    timestamptz NOT NULL,
    asked_at timestamptz NOT NULL,
    PRIMARY KEY (account, worker)
) WITH (fillfactor = 60);

-- Takes up to `wanted` calls of an account's minute: their numbers, and how long to wait before
-- asking for the rest. The account's row is locked, so one worker asks at a time.
--
-- A call flies for `flies` at most and counts for a minute longer, unless its end is told. Half of
-- the minute may go in a burst, the rest is spread. Who has to wait is served in sequence: for each
-- worker that asked before and still waits, a call is left.
CREATE FUNCTION wdt.take_calls(
    of_account text, by_worker bigint, wanted integer,
    per_minute integer, at_once integer, flies_ms bigint,
    OUT taken bigint[], OUT wait_ms bigint
) LANGUAGE plpgsql AS $$
DECLARE
    a wdt.accounts%ROWTYPE;
    t timestamptz;
    flying bigint;
    counting bigint;
    free_at timestamptz;
    free bigint;
    before_us bigint;
    since_us timestamptz;
    flies interval := make_interval(secs => flies_ms / 1000.0);
BEGIN
    taken := '{}';
    wait_ms := 0;
    SELECT * INTO a FROM wdt.accounts WHERE account = of_account FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO wdt.accounts (account) VALUES (of_account) ON CONFLICT DO NOTHING;
        SELECT * INTO a FROM wdt.accounts WHERE account = of_account FOR NO KEY UPDATE;
    END IF;
    t := clock_timestamp();
    IF a.quiet_until > t THEN
        wait_ms := least(1000, ceil(extract(epoch FROM a.quiet_until - t) * 1000));
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE flies_until > t),
           count(*) FILTER (WHERE counts_until > t),
           min(counts_until) FILTER (WHERE counts_until > t)
    INTO flying, counting, free_at
    FROM wdt.calls WHERE account = of_account;
    IF a.careful_until > t THEN
        at_once := 1;
        IF a.called_at > t - interval '7.5 seconds' THEN
            wait_ms := 1000;
            RETURN;
        END IF;
    END IF;
    free := at_once - flying;
    wait_ms := 50;
    IF per_minute > 0 THEN
        IF per_minute - counting < free THEN
            free := per_minute - counting;
            IF free <= 0 AND free_at IS NOT NULL THEN
                wait_ms := greatest(50, ceil(extract(epoch FROM free_at - t) * 1000));
            END IF;
        END IF;
        IF free > 0 AND counting * 2 >= per_minute THEN
            -- The rest of the minute is spread.
            IF a.called_at + interval '1 minute' / per_minute > t THEN
                free := 0;
                wait_ms := ceil(extract(epoch FROM
                    a.called_at + interval '1 minute' / per_minute - t) * 1000);
            ELSE
                free := least(free, 1);
            END IF;
        END IF;
    END IF;
    SELECT q.since INTO since_us FROM wdt.queue q
    WHERE q.account = of_account AND q.worker = by_worker AND q.asked_at > t - interval '3 seconds';
    SELECT count(*) INTO before_us FROM wdt.queue q
    WHERE q.account = of_account AND q.worker <> by_worker
      AND q.asked_at > t - interval '3 seconds' AND q.since < coalesce(since_us, t);
    free := least(wanted, free - before_us);
    IF free > 0 THEN
        WITH new AS (
            INSERT INTO wdt.calls (id, account, flies_until, counts_until)
            SELECT nextval('wdt.numbers'), of_account, t + flies, t + flies + interval '1 minute'
            FROM generate_series(1, free)
            RETURNING id)
        SELECT array_agg(id) INTO taken FROM new;
        UPDATE wdt.accounts SET called_at = t WHERE account = of_account;
    END IF;
    IF coalesce(array_length(taken, 1), 0) < wanted THEN
        INSERT INTO wdt.queue AS q VALUES (of_account, by_worker, t, t)
        ON CONFLICT (account, worker) DO UPDATE
        SET since = CASE WHEN free > 0 OR q.asked_at <= t - interval '3 seconds'
                         THEN t ELSE q.since END,
            asked_at = t;
        wait_ms := least(1000, wait_ms);
    ELSE
        DELETE FROM wdt.queue WHERE account = of_account AND worker = by_worker;
        wait_ms := 0;
    END IF;
END $$;
"#;

/// Accounts that an operator does not want to be called. Workers of an earlier schema do not know of
/// them and call on, but they work.
const PAUSES: &str = r#"
CREATE TABLE wdt.pauses (
    account text COLLATE "C" PRIMARY KEY,
    since   bigint NOT NULL,
    who     text NOT NULL
);
"#;

/// Where this table is, the ledger is one of dry runs. It is made with the first migration.
const DRY_RUN: &str = "CREATE TABLE wdt.dry_run ();";

/// What happened; see `ledger::journal`. Each run of a worker writes a chain of its own. A worker of
/// an earlier schema knows nothing of it, and writes none.
///
/// Whoever may write orders may write these, so that a role that was granted its tables once need
/// not be granted these by hand.
const JOURNAL: &str = r#"
CREATE TABLE wdt.chains (
    chain          text COLLATE "C" PRIMARY KEY,
    worker         text NOT NULL,   -- for people: host and process
    began_at       bigint NOT NULL,
    seq            bigint NOT NULL, -- its last row
    at             bigint NOT NULL,
    hash           bytea NOT NULL,
    forgotten_seq  bigint NOT NULL DEFAULT 0, -- the last that was forgotten
    forgotten_hash bytea
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE wdt.journal (
    chain text COLLATE "C" NOT NULL,
    seq   bigint NOT NULL,          -- without gaps
    at    bigint NOT NULL,
    text  text NOT NULL,            -- JSON; byte for byte what was hashed
    hash  bytea NOT NULL,           -- SHA-256 of the hash before and the text
    PRIMARY KEY (chain, seq)
);
CREATE TABLE wdt.journal_filters (
    chain     text COLLATE "C" NOT NULL,
    last_seq  bigint NOT NULL,
    first_seq bigint NOT NULL,
    names     bytea NOT NULL,       -- a Bloom filter of what the rows name
    PRIMARY KEY (chain, last_seq)
);
DO $$
DECLARE
    writer text;
BEGIN
    FOR writer IN
        SELECT DISTINCT CASE grantee WHEN 'PUBLIC' THEN 'PUBLIC' ELSE quote_ident(grantee) END
        FROM information_schema.role_table_grants
        WHERE table_schema = 'wdt' AND table_name = 'orders' AND privilege_type = 'INSERT'
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE
                 ON wdt.chains, wdt.journal, wdt.journal_filters TO ' || writer;
    END LOOP;
END $$;
"#;

/// What was found in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// The last migration that was made; 0 for none.
    pub(super) version: i32,
    /// The oldest schema whose workers can work with that.
    pub(super) oldest: i32,
}

impl Found {
    /// This version of the worker can work with it.
    pub(super) fn is_known(self) -> bool {
        self.oldest <= VERSION
    }
}

/// Which migrations were made.
///
/// # Errors
/// When the database cannot be asked.
pub(super) async fn find(client: &Object) -> Result<Found, DbError> {
    let none = Found {
        version: 0,
        oldest: 0,
    };
    // From the catalogue itself: what a session remembers of names may be older than a lock that it
    // waited for.
    let table = "SELECT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'wdt' AND c.relname = 'migrations')";
    if !client.query_one(table, &[]).await?.get::<_, bool>(0) {
        return Ok(none);
    }
    let last = "SELECT version, oldest FROM wdt.migrations ORDER BY version DESC LIMIT 1";
    let row = client.query_opt(last, &[]).await?;
    Ok(row.map_or(none, |row| Found {
        version: row.get(0),
        oldest: row.get(1),
    }))
}

/// Whose ledger it is, once there is one.
///
/// # Errors
/// When the database cannot be asked.
pub(super) async fn mode(client: &Object) -> Result<Mode, DbError> {
    let mark = "SELECT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'wdt' AND c.relname = 'dry_run')";
    let is_dry_run = client.query_one(mark, &[]).await?.get(0);
    Ok(if is_dry_run { Mode::DryRun } else { Mode::Live })
}

/// Makes the migrations that are missing, if any, as the only one who does; tells what there is
/// then. An empty database becomes a ledger of this mode.
///
/// # Errors
/// When the database cannot be written, or the role may not create tables. What was made stays.
pub(super) async fn migrate(client: &Object, mode: Mode) -> Result<Found, DbError> {
    apply(client, mode, MIGRATIONS).await
}

async fn apply(client: &Object, mode: Mode, migrations: &[(&str, i32)]) -> Result<Found, DbError> {
    for (version, (migration, oldest)) in (1..).zip(migrations) {
        // Others may be at it, or just have been.
        let lock = format!(
            "BEGIN; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
        );
        client.batch_execute(&lock).await?;
        let found = find(client).await?;
        if found.version >= version {
            client.batch_execute("COMMIT").await?;
            continue;
        }
        let mark = match mode {
            Mode::DryRun if version == 1 => DRY_RUN,
            Mode::DryRun | Mode::Live => "",
        };
        let step = format!(
            "CREATE SCHEMA IF NOT EXISTS wdt;
             CREATE TABLE IF NOT EXISTS wdt.migrations (
                 version integer PRIMARY KEY,
                 oldest  integer NOT NULL,
                 made_at timestamptz NOT NULL DEFAULT now());
             {migration}
             {mark}
             INSERT INTO wdt.migrations (version, oldest) VALUES ({version}, {oldest});
             COMMIT"
        );
        client.batch_execute(&step).await?;
        tracing::info!(
            schema = version,
            "the shared ledger was brought to a later schema"
        );
    }
    find(client).await
}
