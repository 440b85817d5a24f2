//! What a dry run makes of the settings.

use super::bounds::AMQP_NAME_BYTES;
use super::{Config, ConfigError, LedgerUrl};

/// Behind the names of what is a dry run's own.
const SUFFIX: &str = ".dry-run";

impl Config {
    /// The same settings with queues and a ledger of its own, so that nobody can by mistake let a
    /// dry run take the live worker's commands, which would then never be carried out, or put its
    /// endings into the live ledger. A database keeps its name: whether it is one of dry runs is
    /// seen when it is opened.
    ///
    /// # Errors
    /// When a queue's name would become too long.
    pub fn for_dry_run(mut self) -> Result<Self, ConfigError> {
        let names = [
            ("amqp.queue", &mut self.amqp.queue),
            ("amqp.dead_queue", &mut self.amqp.dead_queue),
        ];
        let room = AMQP_NAME_BYTES.end() - SUFFIX.len();
        let mut problems = Vec::new();
        for (setting, name) in names {
            if name.len() > room {
                problems.push(format!(
                    "{setting}: has {} bytes; a dry run puts {SUFFIX} behind it, so it may have at most {room}",
                    name.len()
                ));
            }
            name.push_str(SUFFIX);
        }
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        if let LedgerUrl::Path(path) = &mut self.ledger.url {
            path.as_mut_os_string().push(SUFFIX);
        }
        Ok(self)
    }
}
