//! The outgoing half of one connection: fills the window, takes the answers, puts aside what will
//! never be taken.
//!
//! Used by [`super::Bridge::carry`], made anew for each connection; what must outlast it is in the
//! outlets.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::Message;
use holdfast_link::mqtt::{self, Client, Granted, Outcome, Publish, ReasonCode, Settled};
use holdfast_protocol::drain;

use super::convert::{self, Stamp};
use super::dead_letter::DeadLetters;
use super::far::News;
use super::outlet::{Next, Outlet};
use super::standing::Board;

/// Rest before refused or faulty messages are tried again.
const REFUSED_REST: Duration = Duration::from_secs(1);
/// Tag of the gateway's own words.
const OWN_TAG: u64 = u64::MAX;
/// A tag carries the outlet in its highest byte; row ids stay far below.
const TAG_SHIFT: u32 = 56;

/// What the half works with.
pub(super) struct Outbound<'a> {
    pub(super) client: &'a Client,
    pub(super) granted: &'a Granted,
    pub(super) outlets: &'a mut Vec<Outlet>,
    pub(super) stamp: Stamp,
    pub(super) dead_letters: &'a DeadLetters,
    pub(super) board: &'a Board,
    pub(super) window: usize,
    /// The outlet that comes first this time, so that a long backlog of one starves no other.
    pub(super) turn: usize,
}

impl Outbound<'_> {
    /// Sends until the connection ends or the journal fails; says why.
    pub(super) async fn run(mut self, mut news: News) -> String {
        let mut retry = tokio::time::interval(REFUSED_REST);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let more = match self.send().await {
                Ok(more) => more,
                Err(why) => return why,
            };
            let step = tokio::select! {
                settled = self.client.settled() => match settled {
                    Some(settled) => self.settle(settled).await,
                    None => return "the connection is over".to_owned(),
                },
                grown = grown(self.outlets) => {
                    self.outlets[grown].journal_grew();
                    Ok(())
                }
                word = news.next() => self.say(word).await,
                () = tokio::task::yield_now(), if more => Ok(()),
                _ = retry.tick() => {
                    self.outlets.iter_mut().for_each(Outlet::retry);
                    self.tell_denied();
                    Ok(())
                }
            };
            if let Err(why) = step {
                return why;
            }
        }
    }

    /// Fills the window; whether there is more to read and room to send it.
    async fn send(&mut self) -> Result<bool, String> {
        let (count, mut more) = (self.outlets.len(), false);
        if count == 0 {
            return Ok(false);
        }
        self.turn = (self.turn + 1) % count;
        for index in (self.turn..count).chain(0..self.turn) {
            more |= self.outlets[index]
                .fill()
                .await
                .map_err(|error| error.to_string())?;
            loop {
                if self.outlets.iter().map(Outlet::under_way).sum::<usize>() >= self.window {
                    return Ok(false);
                }
                match self.outlets[index].next(self.stamp) {
                    None => break,
                    Some(Next::Send(id, publish)) => self.publish(index, id, *publish).await?,
                    Some(Next::Expired(id)) => self.take_away(index, id).await?,
                    Some(Next::Nowhere(id)) => {
                        let why = "the rule leaves nothing of its topic";
                        self.never(index, id, &why).await?;
                    }
                }
            }
        }
        Ok(more)
    }

    async fn publish(
        &mut self,
        index: usize,
        id: drain::RowId,
        publish: Publish,
    ) -> Result<(), String> {
        let publish = Publish {
            tag: tag(index, id),
            // A remote that keeps no retained messages can still have this one as it comes.
            retain: publish.retain && self.granted.retains,
            ..publish
        };
        match self.client.publish(publish).await {
            Ok(()) => Ok(()),
            Err(mqtt::PublishError::Closed) => Err("the connection is over".to_owned()),
            Err(never) => self.never(index, id, &never).await,
        }
    }

    /// Puts aside what can never be sent; its row goes.
    async fn never(
        &mut self,
        index: usize,
        id: drain::RowId,
        why: &impl std::fmt::Display,
    ) -> Result<(), String> {
        let dead = self.outlets[index].refused(id, drain::Refusal::Never);
        self.put_aside(dead, why).await;
        self.outlets[index]
            .acknowledge(&[id])
            .await
            .map_err(|error| error.to_string())
    }

    /// Its life was over before its turn came.
    async fn take_away(&mut self, index: usize, id: drain::RowId) -> Result<(), String> {
        let outlet = &mut self.outlets[index];
        let gone = outlet.acknowledged(id);
        outlet
            .acknowledge(gone.as_slice())
            .await
            .map_err(|error| error.to_string())
    }

    async fn put_aside(&self, dead: Option<Arc<Message>>, why: &impl std::fmt::Display) {
        if let Some(message) = dead {
            self.board.died();
            self.dead_letters
                .keep(self.board.name(), &message, why)
                .await;
        }
    }

    /// Takes the remote's answers; acknowledged rows leave the journal in one commit.
    async fn settle(&mut self, settled: Vec<Settled>) -> Result<(), String> {
        let mut done = vec![Vec::new(); self.outlets.len()];
        for Settled { tag, outcome } in settled {
            let Some((index, id)) = untag(tag).filter(|(index, _)| *index < done.len()) else {
                continue;
            };
            let outlet = &mut self.outlets[index];
            match outcome {
                Outcome::Acknowledged(_) => done[index].extend(outlet.acknowledged(id)),
                Outcome::Refused(code) => {
                    let dead = self.denied(index, id, code).await;
                    done[index].extend(dead);
                }
                // The link is gone: all of them are put back together.
                Outcome::Lost => {}
            }
        }
        for (outlet, ids) in self.outlets.iter().zip(&done) {
            outlet
                .acknowledge(ids)
                .await
                .map_err(|error| error.to_string())?;
        }
        self.tell_denied();
        Ok(())
    }

    /// Gives the row back when it will never be sent again.
    async fn denied(
        &mut self,
        index: usize,
        id: drain::RowId,
        code: ReasonCode,
    ) -> Option<drain::RowId> {
        let outlet = &mut self.outlets[index];
        let refusal = match convert::verdict(code) {
            convert::Verdict::Never => drain::Refusal::Never,
            convert::Verdict::Later => drain::Refusal::Later,
            convert::Verdict::Denied => outlet.deny(id, code),
        };
        let dead = outlet.refused(id, refusal)?;
        self.put_aside(Some(dead), &code).await;
        Some(id)
    }

    fn tell_denied(&self) {
        let count = self.outlets.iter().map(|outlet| outlet.denied().0).sum();
        let one = self.outlets.iter().find_map(|outlet| outlet.denied().1);
        self.board.denies(count, one);
    }

    /// Tells the far end how the gateway fares, over the link: its broker keeps the last word.
    async fn say(&self, word: Publish) -> Result<(), String> {
        let word = Publish {
            tag: OWN_TAG,
            ..word
        };
        self.client
            .publish(word)
            .await
            .map_err(|error| error.to_string())
    }
}

/// Waits until one of the journals has something new.
async fn grown(outlets: &[Outlet]) -> usize {
    let waits = outlets.iter().enumerate().map(|(index, outlet)| {
        Box::pin(async move {
            outlet.ready().await;
            index
        })
    });
    first(waits.collect()).await
}

/// The first of several futures to end.
async fn first<T>(mut all: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> T {
    std::future::poll_fn(|cx| {
        let ended = all.iter_mut().find_map(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        });
        ended.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

fn tag(outlet: usize, id: drain::RowId) -> u64 {
    ((outlet as u64) << TAG_SHIFT) | id.0
}

fn untag(tag: u64) -> Option<(usize, drain::RowId)> {
    if tag == OWN_TAG {
        return None;
    }
    let outlet = usize::try_from(tag >> TAG_SHIFT).ok()?;
    Some((outlet, drain::RowId(tag & ((1 << TAG_SHIFT) - 1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_carry_outlet_and_row() {
        for (outlet, row) in [(0, 1), (3, 77), (254, (1 << TAG_SHIFT) - 1)] {
            let row = drain::RowId(row);
            assert_eq!(untag(tag(outlet, row)), Some((outlet, row)));
        }
        assert_eq!(untag(OWN_TAG), None);
    }
}
