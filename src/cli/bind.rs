//! `bind`: a queue for the results.

use std::io::Write as _;

use anyhow::Context as _;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::Exit;
use crate::broker::{link, topology};
use crate::config::{BrokerConfig, Secret};

/// Arguments of `bind`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue; it is created as a durable quorum queue where there is none.
    queue: String,
    /// Which results: cancel.ACCOUNT.OUTCOME, where * stands for one word and # for any number.
    #[arg(long, value_name = "PATTERN", default_value = "cancel.#")]
    key: String,
}

/// Creates and binds.
///
/// # Errors
/// When the broker cannot be reached or refuses.
pub async fn run(args: Args, config: BrokerConfig) -> anyhow::Result<Exit> {
    let connection = link::connect_any(
        config.amqp.urls.iter().map(Secret::expose),
        "wdt-cancel-worker bind",
    )
    .await?;
    let exchange = config.amqp.exchange.as_str();
    let durable = ExchangeDeclareOptions {
        durable: true,
        passive: !config.amqp.declare,
        ..ExchangeDeclareOptions::default()
    };
    let channel = connection.create_channel().await?;
    channel
        .exchange_declare(
            exchange.into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("exchange {exchange}"))?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let name = args.queue.as_str();
    let look = connection.create_channel().await?;
    let exists = look
        .queue_declare(name.into(), passive, FieldTable::default())
        .await;
    if exists.is_err() {
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(
                name.into(),
                durable,
                topology::quorum(topology::RESULTS_DELIVERY_LIMIT),
            )
            .await
            .with_context(|| format!("queue {name}"))?;
    }
    channel
        .queue_bind(
            name.into(),
            exchange.into(),
            args.key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("binding {name} to {exchange}"))?;
    let words = format!(
        "queue {name} is bound to exchange {exchange} with {}",
        args.key
    );
    writeln!(std::io::stdout(), "{words}")?;
    connection.close(200, "done".into()).await?;
    Ok(Exit::Done)
}
