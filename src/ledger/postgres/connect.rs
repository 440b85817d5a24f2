//! Connections to the database: what the URL says, TLS, how long anything may take, and what an
//! error means.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::ledger::Fault;

/// One for the worker's requests, one for renewing its lease and for tidying.
const CONNECTIONS: usize = 2;
/// A connection with all that belongs to it: the network, TLS, the password.
const CONNECT: Duration = Duration::from_secs(10);
/// One step, from its first statement to its commit. A database that is frozen says nothing.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// What each session is told. The database gives up a little before the worker does, so that the
/// worker hears why; and it ends the transaction of a worker that froze in one, whose locks would
/// keep others waiting. Whoever asks for less than a flushed commit does not get it.
///
/// Every statement of the worker's looks rows up by their keys, so it is always planned like that:
/// by its estimates the database would read whole tables while these are new, and keep the plan. And
/// none of them is worth being compiled.
const SESSION: &str = "
SET statement_timeout = '9s';
SET lock_timeout = '5s';
SET idle_in_transaction_session_timeout = '5s';
SET jit = off;
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off';
";

/// Why the database cannot be used. What it says never has the password in it.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The URL cannot be read, or names a file that cannot.
    #[error("{0}")]
    Url(String),
    /// What the database or the client library says.
    #[error("{}", told(.0))]
    Says(tokio_postgres::Error),
    /// It does not answer.
    #[error("{what} within {} s", STEP.as_secs(), what = .0)]
    Mute(&'static str),
    /// A row holds what no version writes.
    #[error("the ledger is damaged: {column} is {value:?}")]
    Damaged {
        /// Where.
        column: &'static str,
        /// What.
        value: String,
    },
    /// The lease was over and its orders are free; there is a new one from now on.
    #[error("this worker's lease was over")]
    LeaseLost,
}

// By hand, for its words are in ours already.
impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Says(error)
    }
}

impl DbError {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Says(error) => error.code(),
            Self::Url(_) | Self::Mute(_) | Self::Damaged { .. } | Self::LeaseLost => None,
        }
    }

    /// Two workers got in each other's way; the connection is good, and the same works at once.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::LeaseLost)
            || self.code().is_some_and(|code| {
                *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == SqlState::T_R_DEADLOCK_DETECTED
                    || *code == SqlState::LOCK_NOT_AVAILABLE
            })
    }

    /// The role may not do that.
    pub(super) fn is_denied(&self) -> bool {
        self.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Time may mend it; at a start it is worth waiting a little.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Mute(_) => true,
            Self::Says(error) => error.as_db_error().is_none_or(|db| {
                let code = db.code().code();
                // Connection trouble, resources, an operator's hand, read-only.
                ["08", "53", "57", "25", "40"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }),
            Self::Url(_) | Self::Damaged { .. } | Self::LeaseLost => false,
        }
    }

    pub(super) fn fault(&self) -> Fault {
        let remedy = match self.code() {
            Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION => {
                "let ledger.url name the primary, or all hosts with target_session_attrs=read-write; nothing is sent or told until it takes writes, and then it goes on by itself"
            }
            Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
                "raise max_connections of the database or end what takes them: a worker needs two; it goes on by itself"
            }
            Some(code) if *code == SqlState::DISK_FULL => {
                "free room on the database's disk; nothing is sent or told until it takes writes, and then it goes on by itself"
            }
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                "grant the worker's role what docs/OPERATIONS.md says; it goes on by itself"
            }
            _ => {
                "check the database under ledger.url and the way to it; nothing is sent or told until it takes writes, and then it goes on by itself"
            }
        };
        Fault::passing(self.to_string(), remedy)
    }
}

/// The whole of what is said, for an error's own words often leave out the cause.
fn told(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("the database says: {} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    format!("the database cannot be reached: {text}")
}

/// Connections that are made when they are needed and kept while they are good.
#[derive(Debug, Clone)]
pub(super) struct Db(Pool);

impl Db {
    /// Reads the URL; nothing is connected yet.
    ///
    /// # Errors
    /// When the URL, or a certificate that it names, cannot be read.
    pub(super) fn new(url: &str) -> Result<Self, DbError> {
        let Target { mut config, tls } = Target::parse(url)?;
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        config.connect_timeout(CONNECT / 2);
        config.tcp_user_timeout(STEP);
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method });
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT))
            .create_timeout(Some(CONNECT))
            .recycle_timeout(Some(CONNECT))
            .post_create(Hook::async_fn(|client, _| {
                Box::pin(async move {
                    let told = client.batch_execute(SESSION).await;
                    told.map_err(HookError::Backend)
                })
            }))
            .build()
            .map_err(|error| DbError::Url(error.to_string()))?;
        Ok(Self(pool))
    }

    /// A connection. Whoever meets an error on it drops it by [`Lent::give_up`].
    pub(super) async fn lend(&self) -> Result<Lent, DbError> {
        match self.0.get().await {
            Ok(client) => Ok(Lent(client)),
            Err(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => Err(error.into()),
            Err(_) => Err(DbError::Mute("the database does not accept a connection")),
        }
    }

    /// Does one step on a connection, within its time. After an error that is not a conflict the
    /// connection is not used again: another one may lead to another host.
    pub(super) async fn step<T>(
        &self,
        work: impl AsyncFnOnce(&Object) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.step_within(STEP, work).await
    }

    /// The same, for what takes longer.
    pub(super) async fn step_within<T>(
        &self,
        time: Duration,
        work: impl AsyncFnOnce(&Object) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let lent = self.lend().await?;
        let done = tokio::time::timeout(time, work(&lent.0)).await;
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                let goes_on = error.is_conflict()
                    && matches!(
                        tokio::time::timeout(STEP, lent.0.batch_execute("ROLLBACK")).await,
                        Ok(Ok(()))
                    );
                if !goes_on {
                    lent.give_up();
                }
                Err(error)
            }
            Err(_) => {
                lent.give_up();
                Err(DbError::Mute("the database does not answer"))
            }
        }
    }
}

/// A connection on loan.
pub(super) struct Lent(Object);

impl Lent {
    fn give_up(self) {
        drop(Object::take(self.0));
    }
}

/// What a URL says.
struct Target {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
}

/// How much of the server's certificate is checked, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Issuer,
    IssuerAndName,
}

impl Target {
    /// `sslmode` means what it means to libpq, and so does `sslrootcert`; the client library knows
    /// neither of them whole.
    fn parse(url: &str) -> Result<Self, DbError> {
        let (start, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut root) = ("prefer", None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = value,
                Some(("sslrootcert", value)) => root = Some(unescape(value)?),
                _ => rest.push(pair),
            }
        }
        let (tls, check) = match (mode, &root) {
            ("disable", _) => (SslMode::Disable, Check::Nothing),
            ("allow" | "prefer", _) => (SslMode::Prefer, Check::Nothing),
            ("require", None) => (SslMode::Require, Check::Nothing),
            ("require" | "verify-ca", _) => (SslMode::Require, Check::Issuer),
            ("verify-full", _) => (SslMode::Require, Check::IssuerAndName),
            _ => {
                return Err(DbError::Url(
                    "sslmode: disable, prefer, require, verify-ca or verify-full would do".into(),
                ));
            }
        };
        let plain = format!("{start}?{}", rest.join("&"));
        // What the library says of a URL may repeat a part of it, so it is not passed on.
        let mut config =
            tokio_postgres::Config::from_str(plain.trim_end_matches('?')).map_err(|_| {
                DbError::Url(
                    "the URL cannot be read; postgres://USER:PASSWORD@HOST:PORT/DATABASE would do"
                        .into(),
                )
            })?;
        config.ssl_mode(tls);
        let tls = MakeRustlsConnect::new(client_config(check, root.map(PathBuf::from))?);
        Ok(Self { config, tls })
    }
}

fn unescape(value: &str) -> Result<String, DbError> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or(b'?')));
        let [Some(high), Some(low)] = digits.map(|digit| digit.to_digit(16)) else {
            return Err(DbError::Url("sslrootcert: an escape cannot be read".into()));
        };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
    }
    String::from_utf8(bytes).map_err(|_| DbError::Url("sslrootcert: it is not UTF-8".into()))
}

fn client_config(check: Check, root: Option<PathBuf>) -> Result<ClientConfig, DbError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = if check == Check::Nothing {
        Arc::new(Lenient {
            provider: Arc::clone(&provider),
            issuer: None,
        })
    } else {
        let roots = Arc::new(roots(root)?);
        let strict = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| DbError::Url(format!("sslrootcert: {error}")))?;
        if check == Check::IssuerAndName {
            strict
        } else {
            Arc::new(Lenient {
                provider: Arc::clone(&provider),
                issuer: Some(strict),
            })
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| DbError::Url(format!("TLS cannot be set up: {error}")))?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn roots(path: Option<PathBuf>) -> Result<RootCertStore, DbError> {
    let mut store = RootCertStore::empty();
    match path.filter(|path| path.as_os_str() != "system") {
        Some(path) => {
            let bad =
                |what: String| DbError::Url(format!("sslrootcert: {}: {what}", path.display()));
            let certificates =
                CertificateDer::pem_file_iter(&path).map_err(|e| bad(e.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                store
                    .add(certificate)
                    .map_err(|error| bad(error.to_string()))?;
            }
            if store.is_empty() {
                return Err(bad("there is no certificate in it".into()));
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                let what = "this machine trusts no certificates; name a file in sslrootcert";
                return Err(DbError::Url(what.into()));
            }
        }
    }
    Ok(store)
}

/// `require` encrypts and checks nothing, `verify-ca` takes any name that a trusted issuer signed.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    issuer: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(issuer) = &self.issuer else {
            return Ok(ServerCertVerified::assertion());
        };
        match issuer.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // The name is looked at after everything else.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(query: &str) -> Result<SslMode, String> {
        let target = Target::parse(&format!("postgres://me:secret@db:5433/wdt{query}"));
        target
            .map(|target| target.config.get_ssl_mode())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn sslmode_means_what_it_means_to_libpq() {
        assert_eq!(mode(""), Ok(SslMode::Prefer));
        assert_eq!(mode("?sslmode=disable"), Ok(SslMode::Disable));
        assert_eq!(
            mode("?application_name=x&sslmode=require"),
            Ok(SslMode::Require)
        );
        for strict in ["verify-ca", "verify-full"] {
            let query = format!("?sslmode={strict}&sslrootcert=/no/such%20file");
            let said = mode(&query).unwrap_err();
            assert!(said.contains("/no/such file"), "{said}");
        }
        assert!(
            mode("?sslmode=perhaps")
                .unwrap_err()
                .contains("verify-full")
        );
    }

    #[test]
    fn what_is_said_of_a_url_repeats_nothing_of_it() {
        for query in ["?nonsense=1", "?port=secret", "?sslmode=secret"] {
            let said = mode(query).unwrap_err();
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
