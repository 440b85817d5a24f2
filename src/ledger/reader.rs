//! A ledger for those who only read it, also while workers write: one view of one moment.

use std::io;
use std::path::{Path, PathBuf};

use deadpool_postgres::Object;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::journal::{Hash, Head};
use super::keys::{Keys, keys_of};
use super::open::{self, Seen};
use super::postgres::{DbError, read as shared};
use super::schema;
use super::sqlite::command_key;
use super::{OpenError, postgres};

/// Rows that are read at once take no more than this, in bytes, and what one row has beyond it: a row
/// Rows of the journal read at once, at most.
const ROWS: u32 = 200;
/// may be large, and the page's searches are made within the worker.
const ROOM: usize = 4 * 1024 * 1024;

/// Where a ledger is. It may hold a password, so it is never shown.
#[derive(Clone)]
pub enum Source {
    /// An embedded one.
    File(PathBuf),
    /// A shared one: its URL.
    Database(String),
}

/// Why a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The embedded one cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The shared one cannot be used.
    #[error(transparent)]
    Shared(#[from] postgres::OpenError),
    /// It has no journal yet.
    #[error(
        "the ledger has schema {found}, this version reads {}; a worker of this version brings it up to date when it starts",
        .needed
    )]
    Older {
        /// The ledger's schema.
        found: i32,
        /// This version's.
        needed: i32,
    },
    /// While it was read.
    #[error("the ledger cannot be read: {0}")]
    File(rusqlite::Error),
    /// The same of a shared one.
    #[error("the ledger cannot be read: {0}")]
    Database(DbError),
    /// A row of the journal is not what any version writes.
    #[error(
        "row {seq} of the journal's chain {chain} cannot be read ({why}); wdt-cancel-worker audit verify tells whether it was changed"
    )]
    Row {
        /// The chain.
        chain: String,
        /// The row.
        seq: i64,
        /// Why.
        why: String,
    },
    /// The system.
    #[error("{0}")]
    System(io::Error),
}

// By hand, for their words are in ours already.
impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::File(error)
    }
}

impl From<DbError> for ReadError {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// One chain of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// What its first row that is left follows.
    pub(super) anchor: (i64, Hash),
    /// Its last row, as the ledger's own mark has it.
    pub(super) head: (i64, Hash),
}

/// A row of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seq: i64,
    pub(super) text: String,
    pub(super) hash: Vec<u8>,
}

/// The names of the rows up to this one, from those of the filter before.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) last: i64,
    pub(super) bits: Vec<u8>,
}

/// What is recorded of an order.
#[derive(Debug)]
pub(super) struct OrderRecord {
    pub(super) account: String,
    pub(super) state: i16,
    pub(super) attempts: u32,
    pub(super) since: i64,
    pub(super) changed_at: i64,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

/// What is recorded of what a command was told.
#[derive(Debug)]
pub(super) struct ResultRecord {
    pub(super) order_no: String,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) attempts: u32,
    pub(super) occurred_at: i64,
}

impl Chain {
    /// A row is not what any version writes.
    pub(super) fn unreadable(&self, seq: i64, error: &serde_json::Error) -> ReadError {
        ReadError::Row {
            chain: self.name.clone(),
            seq,
            why: error.to_string(),
        }
    }
}

/// An open ledger.
pub(super) enum Reader {
    File(Connection),
    Database(Object),
}

impl Reader {
    /// Reads on a thread of its own: a file's reads wait for the disk, and there may be many.
    pub(super) async fn apart<T: Send + 'static>(
        source: &Source,
        work: impl AsyncFnOnce(&Self) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let source = source.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("ledger reader".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let done = match runtime {
                    Ok(runtime) => runtime.block_on(async {
                        let reader = Self::open(&source).await?;
                        work(&reader).await
                    }),
                    Err(error) => Err(error.into()),
                };
                // Whoever asked may have gone.
                drop(tell.send(done));
            })?;
        let panicked = || io::Error::other("the thread that reads the ledger panicked");
        told.await.unwrap_or_else(|_| Err(panicked().into()))
    }

    async fn open(source: &Source) -> Result<Self, ReadError> {
        match source {
            Source::File(path) => Self::open_file(path),
            Source::Database(url) => match shared::begin(url).await? {
                Ok(client) => Ok(Self::Database(client)),
                Err((found, needed)) => Err(ReadError::Older { found, needed }),
            },
        }
    }

    fn open_file(path: &Path) -> Result<Self, ReadError> {
        let Seen {
            connection,
            schema,
            mode: _,
        } = open::look(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let needed = schema::VERSION;
        if schema < needed {
            let found = schema;
            return Err(ReadError::Older { found, needed });
        }
        connection.execute_batch("BEGIN")?;
        Ok(Self::File(connection))
    }

    pub(super) async fn chains(&self) -> Result<Vec<Chain>, ReadError> {
        let rows = match self {
            Self::File(connection) => {
                let marks = "SELECT chain, forgotten_seq, forgotten_hash, journal_seq, journal_hash
                     FROM marks";
                vec![connection.query_row(marks, [], |row| {
                    Ok((
                        row.get::<_, String>(0)?,
                        (row.get(1)?, row.get::<_, Option<Vec<u8>>>(2)?),
                        (row.get(3)?, row.get::<_, Option<Vec<u8>>>(4)?),
                    ))
                })?]
            }
            Self::Database(client) => shared::chains(client).await?,
        };
        let chains = rows.into_iter().map(|(name, anchor, head)| {
            let first = Head::of(&name).hash;
            let hash = |hash: Option<Vec<u8>>| {
                // One of another length is no row's.
                hash.map_or(first, |hash| Hash::try_from(hash).unwrap_or([0; 32]))
            };
            Chain {
                anchor: (anchor.0, hash(anchor.1)),
                head: (head.0, hash(head.1)),
                name,
            }
        });
        Ok(chains.collect())
    }

    /// The first row from `first` on that was written at that time or later.
    pub(super) async fn since(
        &self,
        chain: &Chain,
        first: i64,
        since: i64,
    ) -> Result<Option<i64>, ReadError> {
        match self {
            Self::File(connection) => Ok(connection.query_row(
                "SELECT min(seq) FROM journal WHERE seq >= ?1 AND at >= ?2",
                [first, since],
                |row| row.get(0),
            )?),
            Self::Database(client) => Ok(shared::since(client, &chain.name, first, since).await?),
        }
    }

    /// Goes through the rows from `first` to `last`, in sequence.
    pub(super) async fn each_row(
        &self,
        chain: &Chain,
        (mut first, last): (i64, i64),
        mut each: impl FnMut(Row) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        loop {
            let rows = self.rows(chain, (first, last)).await?;
            let Some(end) = rows.last().map(|row| row.seq) else {
                return Ok(());
            };
            rows.into_iter().try_for_each(&mut each)?;
            // What somebody made the last there is has none after it.
            let Some(next) = end.checked_add(1) else {
                return Ok(());
            };
            first = next;
        }
    }

    /// Rows from `first` to `last`, in sequence, at least one of those that there are, and as many as
    /// there is room for.
    pub(super) async fn rows(
        &self,
        chain: &Chain,
        (first, last): (i64, i64),
    ) -> Result<Vec<Row>, ReadError> {
        match self {
            Self::File(connection) => {
                let mut rows = connection.prepare_cached(
                    "SELECT seq, text, hash FROM journal WHERE seq BETWEEN ?1 AND ?2
                     ORDER BY seq LIMIT ?3",
                )?;
                let mut found = rows.query_map(params![first, last, ROWS], |row| {
                    // Whatever somebody made of it is told as what it is: not what was hashed.
                    let text = row.get_ref(1)?;
                    let text = text.as_bytes_or_null()?.unwrap_or_default();
                    let hash = row.get_ref(2)?;
                    Ok(Row {
                        seq: row.get(0)?,
                        text: String::from_utf8_lossy(text).into_owned(),
                        hash: hash.as_bytes_or_null()?.unwrap_or_default().to_vec(),
                    })
                })?;
                let (mut rows, mut bytes) = (Vec::new(), 0);
                while bytes < ROOM
                    && let Some(row) = found.next().transpose()?
                {
                    bytes += row.text.len();
                    rows.push(row);
                }
                Ok(rows)
            }
            Self::Database(client) => {
                let within = (i64::from(ROWS), ROOM as i64);
                Ok(shared::rows(client, &chain.name, (first, last), within).await?)
            }
        }
    }

    /// The next filter after those that end with row `after`.
    pub(super) async fn names(
        &self,
        chain: &Chain,
        after: i64,
    ) -> Result<Option<Names>, ReadError> {
        match self {
            Self::File(connection) => Ok(connection
                .prepare_cached(
                    "SELECT last_seq, names FROM journal_filters WHERE last_seq > ?1
                     ORDER BY last_seq LIMIT 1",
                )?
                .query_row([after], |row| {
                    Ok(Names {
                        last: row.get(0)?,
                        bits: row.get(1)?,
                    })
                })
                .optional()?),
            Self::Database(client) => Ok(shared::names(client, &chain.name, after).await?),
        }
    }

    /// What is recorded of an order, under whatever account.
    pub(super) async fn orders(&self, order_no: &str) -> Result<Vec<OrderRecord>, ReadError> {
        match self {
            Self::File(connection) => {
                let mut rows = connection.prepare(
                    "SELECT account, state, attempts, since, changed_at, code, message
                     FROM orders WHERE order_no = ?1 ORDER BY account",
                )?;
                let rows = rows.query_map([order_no], |row| {
                    Ok(OrderRecord {
                        account: row.get(0)?,
                        state: row.get(1)?,
                        attempts: row.get(2)?,
                        since: row.get(3)?,
                        changed_at: row.get(4)?,
                        code: row.get(5)?,
                        message: row.get(6)?,
                    })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            }
            Self::Database(client) => Ok(shared::orders(client, order_no).await?),
        }
    }

    /// What a command was told.
    pub(super) async fn results(
        &self,
        account: &str,
        command_id: &str,
    ) -> Result<Vec<ResultRecord>, ReadError> {
        let connection = match self {
            Self::File(connection) => connection,
            Self::Database(client) => {
                return Ok(shared::results(client, account, command_id).await?);
            }
        };
        let key = command_key(account, command_id);
        let keys = keys_of(key);
        let mut ids: Vec<i64> = Keys::table(connection)?
            .query_map([keys.start(), keys.end()], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        // The index lacks the latest, which the worker has in memory.
        let mut latest = connection.prepare(
            "SELECT id FROM results WHERE id > (SELECT keys_to FROM marks) AND command_key = ?1",
        )?;
        for id in latest.query_map([key], |row| row.get(0))? {
            ids.push(id?);
        }
        ids.sort_unstable();
        ids.dedup();
        let mut result = connection.prepare(
            "SELECT order_no, code, message, attempts, occurred_at FROM results
             WHERE id = ?1 AND account = ?2 AND command_id = ?3",
        )?;
        let mut results = Vec::new();
        for id in ids {
            let row = result.query_row(params![id, account, command_id], |row| {
                Ok(ResultRecord {
                    order_no: row.get(0)?,
                    code: row.get(1)?,
                    message: row.get(2)?,
                    attempts: row.get(3)?,
                    occurred_at: row.get(4)?,
                })
            });
            results.extend(row.optional()?);
        }
        Ok(results)
    }
}
