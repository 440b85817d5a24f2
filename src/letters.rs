//! The operators' page and the dead-letter queue, joined: one request at a time, each on a
//! connection of its own that is gone afterwards, so that no page holds anything of the broker's.

use std::time::Duration;

use lapin::uri::AMQPUri;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::admin::letters::{Done, LETTERS_MAX, Request, Shown, Wish};
use crate::broker::dead::DeadLetters;
use crate::rules::dead::{Letter, Tally};
use crate::rules::order::CommandId;

/// Requests that wait; a page that finds no room says so.
const WAITING_MAX: usize = 8;
/// Between two letters that are sent back: what is pressed on a page must not flood the worker.
const PAUSE: Duration = Duration::from_millis(20);
/// A page's connection lives for a minute, and wants to be answered before.
const TIMEOUT: Duration = Duration::from_secs(40);
/// Of a letter's whole, so much is shown before somebody asks for it, in characters.
const PREVIEW_CHARS: usize = 4000;
/// Of removed letters, so much is handed out at a time, in bytes.
const REMOVED_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Where the letters are.
#[derive(Clone)]
pub struct Settings {
    /// The nodes of one cluster, tried in turn. They hold the password, so they are never shown.
    pub urls: Vec<AMQPUri>,
    /// `amqp.dead_queue`.
    pub dead_queue: String,
    /// `amqp.queue`.
    pub queue: String,
}

/// Serves the page's requests.
pub struct Letters {
    settings: Settings,
    requests: Receiver<Request>,
}

impl Letters {
    /// Starts to serve; the page asks through what is given back.
    pub fn start(settings: Settings) -> (Sender<Request>, JoinHandle<()>) {
        let (asks, requests) = channel(WAITING_MAX);
        let mut letters = Self { settings, requests };
        let task = tokio::spawn(async move {
            while let Some(request) = letters.requests.recv().await {
                let done = tokio::time::timeout(TIMEOUT, letters.serve(&request)).await;
                let answer = match done {
                    Ok(Ok(done)) => Ok(done),
                    Ok(Err(error)) => Err(format!("{error:#}")),
                    Err(_) => Err(format!("not done within {} s", TIMEOUT.as_secs())),
                };
                // Who asked may have gone.
                drop(request.answer.send(answer));
            }
        });
        (asks, task)
    }

    async fn serve(&self, request: &Request) -> anyhow::Result<Done> {
        let Settings {
            urls,
            dead_queue,
            queue,
        } = &self.settings;
        let name = "wdt-cancel-worker: page";
        let dead = DeadLetters::open(urls, dead_queue, queue, name).await?;
        let mut done = Done::default();
        let mut tally = Tally::default();
        let by = &*request.by;
        let worked = match request.wish {
            Wish::Look => dead
                .look(&request.filter, LETTERS_MAX, |letter, whole| {
                    let whole = format!("{:#}", whole());
                    let preview = whole.chars().take(PREVIEW_CHARS).collect();
                    done.letters.push(Shown { letter, preview });
                    Ok(())
                })
                .await
                .map(|looked| tally = looked),
            Wish::Replay => {
                let show = |letter: &Letter| {
                    info!(by, command_id = id(letter), "a dead letter was sent back");
                    Ok(())
                };
                dead.replay(&request.filter, LETTERS_MAX, PAUSE, &mut tally, show)
                    .await
            }
            Wish::Remove => {
                let keep = |letter: &Letter, whole: serde_json::Value| {
                    let whole = whole.to_string();
                    if done.removed.len() + whole.len() > REMOVED_MAX_BYTES {
                        return Err(std::io::Error::other(
                            "too much for one page; go on with: wdt-cancel-worker dead drop",
                        ));
                    }
                    warn!(
                        by,
                        command_id = id(letter),
                        letter = whole,
                        "a dead letter was removed"
                    );
                    done.removed += &whole;
                    done.removed.push('\n');
                    Ok(())
                };
                dead.remove(&request.filter, LETTERS_MAX, &mut tally, keep)
                    .await
            }
        };
        dead.close().await;
        done.tally = tally;
        done.stopped = worked.err().map(|error| error.to_string());
        Ok(done)
    }
}

fn id(letter: &Letter) -> &str {
    letter.command_id.as_ref().map_or("-", CommandId::as_str)
}
