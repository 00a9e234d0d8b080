//! How a device keeps [`Device`]: one CBOR text, which holds private keys and the credential.

use zeroize::Zeroizing;

use super::{Device, MAX_DETAIL, Order, Reported, Running, State, Step};
use crate::{
    crypto::SigningKey,
    lifecycle::{Credential, MessageFault, Outcome},
    notice::Marks,
    record::{Assignment, MAX_SERIAL, RecordFault, Serial},
    wire::cbor::{self, CborError, Reader, Writer},
};

/// Number at the head of the text.
const FORMAT: u64 = 1;
/// Largest key, certificate or list of marks.
const MAX_PART: usize = 32 * 1024;
/// Longest chain.
const MAX_CHAIN: usize = 8;

const REST: u64 = 0;
const WANTED: u64 = 1;
const ASKING: u64 = 2;
const TRYING: u64 = 3;
/// On top of a step that is taken for a renewal.
const RENEWAL: u64 = 4;

impl Device {
    /// The text for storing.
    #[must_use]
    pub fn to_cbor(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(cbor::encode(|w| {
            w.array(8).uint(FORMAT).bytes(&self.marks.to_cbor());
            maybe(w, self.order.as_ref(), |w, order| {
                w.array(2).uint(order.rank);
                maybe(w, order.assignment.as_ref(), |w, one| one.encode(w));
            });
            maybe(w, self.credential.as_ref(), |w, credential| {
                w.bytes(credential.expose());
            });
            maybe(w, self.running.as_ref(), encode_running);
            let aim = if self.renews { RENEWAL } else { 0 };
            match &self.step {
                Step::Rest => _ = w.array(1).uint(REST),
                Step::Wanted => _ = w.array(1).uint(aim + WANTED),
                Step::Asking(key) => {
                    _ = w.array(2).uint(aim + ASKING).bytes(&key.to_pkcs8_der());
                }
                Step::Trying(new) => {
                    w.array(2).uint(aim + TRYING);
                    encode_running(w, new);
                }
            }
            maybe(w, self.report.as_ref(), |w, (serial, outcome)| {
                w.array(2).bytes(serial.as_bytes());
                w.uint(outcome.number());
            });
            maybe(w, self.said.as_ref(), |w, said| {
                w.array(3);
                said.assignment.encode(w);
                w.uint(said.state as u64).text(&said.detail);
            });
        }))
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`MessageFault`], blame: the own store.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, MessageFault> {
        let mut r = Reader::new(bytes)?;
        r.array(8)?;
        if r.uint()? != FORMAT {
            return Err(MessageFault::WrongType);
        }
        let marks = Marks::from_cbor(r.bytes(MAX_PART)?).map_err(|_| bad("marks"))?;
        let order = perhaps(&mut r, |r| {
            r.array(2)?;
            Ok(Order {
                rank: r.uint()?,
                assignment: perhaps(r, assignment)?,
            })
        })?;
        let credential = perhaps(&mut r, |r| Ok(Credential::from_bytes(r.bytes_exact()?)))?;
        let running = perhaps(&mut r, decode_running)?;
        let (step, renews) = decode_step(&mut r)?;
        if renews && running.is_none() {
            return Err(bad("step"));
        }
        let report = perhaps(&mut r, |r| {
            r.array(2)?;
            let serial = serial(r)?;
            Ok((serial, Outcome::from_number(r.uint()?)?))
        })?;
        let said = perhaps(&mut r, decode_said)?;
        r.end()?;
        Ok(Self {
            marks,
            order,
            credential,
            running,
            step,
            renews,
            report,
            said,
        })
    }
}

fn maybe<T>(w: &mut Writer, value: Option<T>, write: impl FnOnce(&mut Writer, T)) {
    match value {
        Some(value) => write(w, value),
        None => _ = w.null(),
    }
}

fn perhaps<'a, T>(
    r: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, MessageFault>,
) -> Result<Option<T>, MessageFault> {
    match r.null() {
        true => Ok(None),
        false => read(r).map(Some),
    }
}

fn encode_running(w: &mut Writer, running: &Running) {
    w.array(5);
    running.assignment.encode(w);
    w.bytes(&running.key.to_pkcs8_der())
        .bytes(&running.certificate);
    w.array(running.chain.len());
    running.chain.iter().for_each(|der| _ = w.bytes(der));
    w.bytes(running.serial.as_bytes());
}

fn decode_running(r: &mut Reader<'_>) -> Result<Running, MessageFault> {
    r.array(5)?;
    Ok(Running {
        assignment: assignment(r)?,
        key: key(r)?,
        certificate: r.bytes(MAX_PART)?.to_vec(),
        chain: {
            let len = r.array_len(MAX_CHAIN)?;
            let chain = (0..len).map(|_| Ok(r.bytes(MAX_PART)?.to_vec()));
            chain.collect::<Result<_, CborError>>()?
        },
        serial: serial(r)?,
    })
}

/// The step, and whether it is taken for a renewal.
fn decode_step(r: &mut Reader<'_>) -> Result<(Step, bool), MessageFault> {
    let parts = r.array_len(2)?;
    let number = r.uint()?;
    let renews = number > RENEWAL;
    let number = if renews { number - RENEWAL } else { number };
    let step = match (number, parts) {
        (REST, 1) => Step::Rest,
        (WANTED, 1) => Step::Wanted,
        (ASKING, 2) => Step::Asking(key(r)?),
        (TRYING, 2) => Step::Trying(Box::new(decode_running(r)?)),
        _ => return Err(bad("step")),
    };
    Ok((step, renews))
}

fn decode_said(r: &mut Reader<'_>) -> Result<Reported, MessageFault> {
    const STATES: [State; 5] = [
        State::Changing,
        State::Runs,
        State::RolledBack,
        State::Refused,
        State::Ended,
    ];
    r.array(3)?;
    let assignment = assignment(r)?;
    let state = STATES.get(r.small::<u8>()? as usize);
    Ok(Reported {
        assignment,
        state: *state.ok_or_else(|| bad("state"))?,
        detail: r.text(MAX_DETAIL * 4)?.to_owned(),
    })
}

fn assignment(r: &mut Reader<'_>) -> Result<Assignment, MessageFault> {
    Assignment::decode(r).map_err(|fault| match fault {
        RecordFault::Cbor(fault) => fault.into(),
        _ => bad("assignment"),
    })
}

fn key(r: &mut Reader<'_>) -> Result<SigningKey, MessageFault> {
    SigningKey::from_pkcs8_der(r.bytes(MAX_PART)?).map_err(|_| bad("key"))
}

fn serial(r: &mut Reader<'_>) -> Result<Serial, MessageFault> {
    Serial::new(r.bytes(MAX_SERIAL)?).ok_or_else(|| bad("serial number"))
}

fn bad(what: &'static str) -> MessageFault {
    CborError::Value(what).into()
}
