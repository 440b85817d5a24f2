//! SIGHUP: the settings are read anew, the file, the environment and the secrets' own files.

use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::error;

use crate::config::{Config, environment};

/// The settings as they are after each SIGHUP, where they are all right; what is wrong with others
/// is told, and changes nothing.
///
/// # Errors
/// When the signal cannot be had.
pub fn on_hangup(file: Option<&Path>) -> std::io::Result<UnboundedReceiver<Config>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (settings, reloads) = unbounded_channel();
    let file = file.map(PathBuf::from);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let read = environment().and_then(|env| Config::load(file.as_deref(), env.into_iter()));
            match read {
                Ok(loaded) => {
                    if settings.send(loaded.config).is_err() {
                        return;
                    }
                }
                Err(wrong) => {
                    for problem in wrong.problems() {
                        error!(
                            problem,
                            "the settings cannot be reloaded; nothing is changed"
                        );
                    }
                }
            }
        }
    });
    Ok(reloads)
}
