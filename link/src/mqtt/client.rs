//! The handles of a connection: [`Client`] sends, [`Inbox`] receives.
//!
//! Called by the bridge and the agent. Neither keeps a message; what they share with the
//! connection's task is in [`super::shared`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::message::{Incoming, Publish, Qos};
use super::outcome::{Ended, Outcome, PublishError, ReasonCode, Settled, SubscribeError};
use super::pump::Command;
use super::session::{Answer, Waiter};
use super::shared::Shared;

/// The sending side of a connection. Cheap to clone. When the last clone is dropped without
/// [`Client::disconnect`] the connection is cut, and the server publishes the will.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: mpsc::Sender<Command>,
    /// Owns the connection's task.
    pub(super) _task: Arc<AbortOnDropHandle<()>>,
}

/// The receiving side of a connection: one owner.
#[derive(Debug)]
pub struct Inbox {
    pub(super) messages: mpsc::Receiver<Incoming>,
    pub(super) mailbox: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
}

impl Client {
    /// Hands a message to the connection. QoS 1 waits for a place in the window; how it ended comes
    /// by [`Client::settled`] under the message's tag, and frees the place when it is taken there.
    /// QoS 0 is gone with the return. May be dropped while it waits: nothing is sent then.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing was sent then and the tag will not be settled.
    pub async fn publish(&self, message: Publish) -> Result<(), PublishError> {
        let waiter = Waiter::Tag(message.tag);
        self.hand_over(message, waiter).await
    }

    /// Publishes with QoS 1 and waits for the outcome; the tag is not used.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_and_wait(&self, mut message: Publish) -> Result<Outcome, PublishError> {
        message.qos = Qos::AtLeastOnce;
        let (asker, told) = oneshot::channel();
        self.hand_over(message, Waiter::Once(asker)).await?;
        Ok(told.await.unwrap_or(Outcome::Lost))
    }

    async fn hand_over(&self, message: Publish, waiter: Waiter) -> Result<(), PublishError> {
        self.shared.check(&message)?;
        if message.qos == Qos::AtMostOnce {
            let place = self.mailbox.reserve().await;
            let place = place.map_err(|_| PublishError::Closed)?;
            let packet = self.shared.build(&message, None)?;
            place.send(Command::Publish(Box::new(packet), None));
            return Ok(());
        }
        let window = self.shared.place().await.ok_or(PublishError::Closed)?;
        let place = self.mailbox.reserve().await;
        let place = place.map_err(|_| PublishError::Closed)?;
        // From here on nothing waits, so nothing can be left half done.
        let id = self.shared.take_id();
        match self.shared.build(&message, Some(id)) {
            Ok(packet) => {
                window.forget();
                place.send(Command::Publish(Box::new(packet), Some(waiter)));
                Ok(())
            }
            Err(error) => {
                self.shared.give_back_id(id);
                Err(error)
            }
        }
    }

    /// Waits for settled messages and takes all there are, which frees their places in the window.
    /// After the end of the connection the rest comes out, the lost ones too, then `None`. May be
    /// dropped while it waits.
    pub async fn settled(&self) -> Option<Vec<Settled>> {
        self.shared.settled().await
    }

    /// Places left in the window now: so many messages of QoS 1 can be handed over without waiting.
    #[must_use]
    pub fn room(&self) -> usize {
        self.shared.room()
    }

    /// Subscribes, at most QoS 1; waits for the server's word.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn subscribe(&self, filters: &[(&str, Qos)]) -> Result<(), SubscribeError> {
        let names: Vec<_> = filters
            .iter()
            .map(|(filter, qos)| ((*filter).to_owned(), *qos))
            .collect();
        let codes = self.ask(|asker| Command::Subscribe(names, asker)).await?;
        judge(filters.iter().map(|(filter, _)| *filter), &codes)
    }

    /// Ends subscriptions; waits for the server's word.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn unsubscribe(&self, filters: &[&str]) -> Result<(), SubscribeError> {
        let names = filters.iter().map(|&filter| filter.to_owned()).collect();
        let codes = self.ask(|asker| Command::Unsubscribe(names, asker)).await?;
        judge(filters.iter().copied(), &codes)
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Answer>) -> Command,
    ) -> Result<Vec<ReasonCode>, SubscribeError> {
        let (asker, answer) = oneshot::channel();
        let sent = self.mailbox.send(command(asker)).await;
        sent.map_err(|_| SubscribeError::Closed)?;
        answer
            .await
            .map_err(|_| SubscribeError::Closed)?
            .map_err(SubscribeError::BadFilter)
    }

    /// The last measured round trip, `None` before the first.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.shared.round_trip()
    }

    /// Pings (or joins the ping under way) and waits for the answer.
    ///
    /// # Errors
    /// Why the connection ended first.
    pub async fn ping(&self) -> Result<Duration, Ended> {
        let (asker, answer) = oneshot::channel();
        if self.mailbox.send(Command::Ping(asker)).await.is_err() {
            return Err(self.ended().await);
        }
        match answer.await {
            Ok(took) => Ok(took),
            Err(_) => Err(self.ended().await),
        }
    }

    /// QoS 0 messages dropped since the connection began because nobody took them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped()
    }

    /// Writes what was handed over before, says DISCONNECT (no will) and ends the connection. What
    /// is not acknowledged by then counts as lost: wait for [`Client::settled`] first.
    pub async fn disconnect(&self) {
        // A closed mailbox: it has ended already.
        let _ = self.mailbox.send(Command::Disconnect).await;
        self.ended().await;
    }

    /// Waits for the end of the connection and tells why.
    pub async fn ended(&self) -> Ended {
        self.shared.ended().await
    }

    /// Why the connection ended, `None` while it stands.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.shared.has_ended()
    }
}

impl Inbox {
    /// The next message, in the server's order; `None` after the end of the connection. A message of
    /// QoS 1 must be handed to [`Inbox::acknowledge`] once its taker has it safe; the server sends
    /// about `receive_maximum` unacknowledged ones and then waits.
    pub async fn next(&mut self) -> Option<Incoming> {
        let message = self.messages.recv().await?;
        self.shared.took(&message);
        Some(message)
    }

    /// Takes up to `most` messages that are there, waiting for at least one; 0 after the end.
    pub async fn next_many(&mut self, into: &mut Vec<Incoming>, most: usize) -> usize {
        let before = into.len();
        let count = self.messages.recv_many(into, most).await;
        for message in &into[before..] {
            self.shared.took(message);
        }
        count
    }

    /// Acknowledges a message of QoS 1; of QoS 0 nothing happens. After the end of the connection
    /// nothing happens either: the server sends the message again.
    pub async fn acknowledge(&self, message: &Incoming) {
        if let Some(id) = message.packet_id {
            let _ = self.mailbox.send(Command::Acknowledge(id)).await;
        }
    }
}

fn judge<'a>(
    filters: impl Iterator<Item = &'a str>,
    codes: &[ReasonCode],
) -> Result<(), SubscribeError> {
    // A server that answers with fewer codes than filters has not granted the rest.
    let missing = std::iter::repeat(&ReasonCode(0x80));
    filters
        .zip(codes.iter().chain(missing))
        .find(|(_, code)| !code.is_success())
        .map_or(Ok(()), |(filter, &code)| {
            Err(SubscribeError::Refused {
                filter: filter.to_owned(),
                code,
            })
        })
}
