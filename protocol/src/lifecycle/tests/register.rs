//! The register's answer to every request in every state of a device.

use super::*;
use crate::{
    record::{Change, DeviceRecord, Entry, EntryId, Evidence, Onboarded, Serial, Standing},
    time::{Time, TimeQuality},
};

fn serial(n: u8) -> Serial {
    Serial::new(&[n]).unwrap()
}

fn started(name: &str, n: u8) -> Change {
    Change::ServiceStarted {
        assignment: Box::new(assignment(name)),
        serial: serial(n),
    }
}

fn ordered(name: &str) -> Change {
    Change::ServiceOrdered(Box::new(assignment(name)))
}

fn activated() -> Change {
    Change::ServiceActivated {
        credential: credential(1).digest(),
    }
}

fn onboarded() -> Change {
    Change::Onboarded(Box::new(Onboarded {
        old_guid: Guid([7; 16]),
        new_guid: Guid([8; 16]),
        voucher: vec![],
        cps_key: SigningKey::generate(&mut TestRng::new(1)).public(),
        evidence: Evidence {
            voucher: vec![],
            statement: None,
        },
    }))
}

fn record(changes: &[Change]) -> DeviceRecord {
    let mut record = DeviceRecord::new(device());
    for (at, change) in (1..).zip(changes) {
        let entry = Entry {
            id: EntryId {
                origin: "gw1".parse().unwrap(),
                epoch: 1,
                seq: at,
            },
            rank: at,
            site: site(),
            at: Time::new(at, TimeQuality::Floor),
            device: Some(device()),
            change: change.clone(),
        };
        record.apply(&entry, Standing::Attested);
    }
    record
}

/// Every state that a device can have at the register.
fn states() -> Vec<(&'static str, Vec<Change>)> {
    let known = vec![onboarded()];
    let with = |base: &[Change], more: &[Change]| [base, more].concat();
    let ready = with(&known, &[activated(), ordered("weather")]);
    let serving = with(&ready, &[started("weather", 9)]);
    vec![
        ("unknown", vec![]),
        ("known", known.clone()),
        ("activated", with(&known, &[activated()])),
        ("ordered", with(&known, &[ordered("weather")])),
        ("ready", ready.clone()),
        ("ready for another", with(&ready, &[ordered("soil")])),
        ("serving", serving.clone()),
        (
            "serving, another ordered",
            with(&serving, &[ordered("soil")]),
        ),
        (
            "changed",
            with(&ready, &[started("civil", 3), started("weather", 9)]),
        ),
        ("ended", with(&serving, &[Change::ServiceEnded])),
        (
            "rolled back",
            with(
                &serving,
                &[
                    Change::ServiceEnded,
                    Change::CertificateRevoked { serial: serial(9) },
                ],
            ),
        ),
        ("to end", with(&serving, &[Change::ServiceEndOrdered])),
        ("onboarded anew", with(&serving, &[onboarded()])),
    ]
}

/// A decision in one word.
fn word(decided: Result<Decision, Refusal>) -> String {
    match decided {
        Ok(Decision::Activate) => "activate".into(),
        Ok(Decision::Grant {
            assignment,
            renews,
            csr,
        }) => {
            assert_eq!(csr, [1, 2, 3]);
            let word = if renews { "renew" } else { "grant" };
            format!("{word} {}", assignment.service)
        }
        Ok(Decision::Record(changes)) => {
            let words: Vec<_> = changes.iter().map(Change::word).collect();
            format!("record [{}]", words.join(", "))
        }
        Ok(Decision::Notice) => "notice".into(),
        Err(refusal) => format!("no: {}", refusal.word()),
    }
}

#[test]
fn every_request_in_every_state() {
    let ask = |kind| Request {
        device: device(),
        kind,
    };
    let update = |name: &str, seed| {
        ask(RequestKind::Update {
            service: service(name),
            credential: credential(seed),
            csr: vec![1, 2, 3],
        })
    };
    let report = |outcome| {
        let serial = serial(9);
        ask(RequestKind::Report { serial, outcome })
    };
    let asked = [
        ask(RequestKind::Activate { service: None }),
        update("weather", 1),
        update("weather", 2),
        update("soil", 1),
        report(Outcome::Runs),
        report(Outcome::RolledBack),
        report(Outcome::Ended),
        ask(RequestKind::Poll),
    ];
    let no = |why: &str| format!("no: {why}");
    let unknown = vec![no("unknown device"); 8];
    let table = |row: [&str; 8]| row.map(str::to_owned).to_vec();
    let row = |activate, right, credential, other, runs, back, ended| {
        table([
            activate, right, credential, other, runs, back, ended, "notice",
        ])
    };
    let wrong = "no: wrong credential";
    let (na, ns, ws) = ("no: not activated", "no: no service", "no: wrong service");
    let (no_serial, used) = ("no: wrong serial", "no: already activated");
    let (grant, renew) = ("grant weather", "renew weather");
    let back = "record [service ended, certificate revoked]";
    let returned = "record [service started, certificate revoked]";
    let revoked = "record [certificate revoked]";
    let none = "record []";
    let all = "record [service ended, certificate revoked, certificate revoked]";
    let expected = [
        unknown,
        row("activate", na, na, na, no_serial, no_serial, no_serial),
        row("activate", ns, wrong, ns, no_serial, no_serial, no_serial),
        row("activate", na, na, na, no_serial, no_serial, no_serial),
        row(
            "activate", grant, wrong, ws, no_serial, no_serial, no_serial,
        ),
        row(
            "activate",
            ws,
            wrong,
            "grant soil",
            no_serial,
            no_serial,
            no_serial,
        ),
        row(used, renew, wrong, ws, none, back, back),
        row(used, renew, wrong, "grant soil", none, back, back),
        row(used, renew, wrong, ws, revoked, returned, all),
        row(used, grant, wrong, ws, no_serial, no_serial, back),
        row(used, grant, wrong, ws, no_serial, none, none),
        row(used, ns, wrong, ns, none, back, back),
        row("activate", renew, wrong, ws, none, back, back),
    ];
    for ((name, changes), expected) in states().iter().zip(expected) {
        let record = record(changes);
        let known = (!changes.is_empty()).then_some(&record);
        let answers: Vec<_> = asked
            .iter()
            .map(|request| word(decide(known, device(), request)))
            .collect();
        assert_eq!(answers, expected, "{name}");
        // Whoever shows another device's certificate gets nothing in any state.
        let stranger = DeviceId::from_guid(Guid([8; 16]));
        for request in &asked {
            let refused = decide(known, stranger, request);
            assert_eq!(refused, Err(Refusal::WrongDevice), "{name}");
        }
    }
}

#[test]
fn a_device_goes_back_to_what_ran_before_and_never_to_what_is_revoked() {
    let base = [
        onboarded(),
        activated(),
        ordered("weather"),
        started("civil", 3),
        started("weather", 9),
    ];
    let request = Request {
        device: device(),
        kind: RequestKind::Report {
            serial: serial(9),
            outcome: Outcome::RolledBack,
        },
    };
    let record_of = |more: &[Change]| record(&[&base[..], more].concat());
    let Ok(Decision::Record(changes)) = decide(Some(&record_of(&[])), device(), &request) else {
        panic!("a rollback is recorded");
    };
    assert_eq!(changes[0], started("civil", 3));
    let record = record_of(&changes);
    let history = record.services().history();
    let names: Vec<_> = history
        .iter()
        .map(|line| line.assignment.service.as_str())
        .collect();
    assert_eq!(names, ["civil", "weather", "civil"]);
    // Told again, nothing more happens.
    let again = decide(Some(&record), device(), &request);
    assert_eq!(again, Ok(Decision::Record(vec![])));
    let gone = Change::CertificateRevoked { serial: serial(3) };
    let decided = decide(Some(&record_of(&[gone])), device(), &request);
    assert_eq!(word(decided), "record [service ended, certificate revoked]");
}

fn decided(record: &DeviceRecord, kind: RequestKind) -> Result<Decision, Refusal> {
    let device = device();
    decide(Some(record), device, &Request { device, kind })
}

fn update(name: &str) -> RequestKind {
    RequestKind::Update {
        service: service(name),
        credential: credential(1),
        csr: vec![1, 2, 3],
    }
}

/// A renewal whose first answer was lost and whose second certificate does not work: the device holds
/// the one that it had, and that is what the record goes back to.
#[test]
fn a_renewal_that_fails_goes_back_to_what_the_device_holds() {
    let base = [
        onboarded(),
        activated(),
        ordered("weather"),
        started("weather", 3),
        started("weather", 8),
        started("weather", 9),
    ];
    let outcome = Outcome::RolledBack;
    let serial_of = serial(9);
    let report = RequestKind::Report {
        serial: serial_of,
        outcome,
    };
    let Ok(Decision::Record(changes)) = decided(&record(&base), report) else {
        panic!("a rollback is recorded");
    };
    assert_eq!(changes[0], started("weather", 3));
    let after = record(&[&base[..], &changes].concat());
    let history = after.services().history();
    assert_eq!((history.len(), history[0].renewals.len()), (1, 0));
    assert_eq!(word(decided(&after, update("weather"))), "renew weather");
}

/// An order that did not work for the device leaves it what it has, and that is renewed: another
/// service, and the same one at another server.
#[test]
fn what_a_device_went_back_to_is_renewed_for_as_long_as_it_runs() {
    let mut elsewhere = assignment("civil");
    elsewhere.application = Some("forecast-2".parse().unwrap());
    for wanted in [assignment("soil"), elsewhere] {
        let ordered_anew = Change::ServiceOrdered(Box::new(wanted.clone()));
        let begun = Change::ServiceStarted {
            assignment: Box::new(wanted.clone()),
            serial: serial(9),
        };
        let base = [
            onboarded(),
            activated(),
            ordered("civil"),
            started("civil", 3),
            ordered_anew.clone(),
            begun,
            started("civil", 3),
            Change::CertificateRevoked { serial: serial(9) },
        ];
        let granted = |record: &DeviceRecord, name: &str| match decided(record, update(name)) {
            Ok(Decision::Grant {
                assignment, renews, ..
            }) => (*assignment, renews),
            other => panic!("{other:?}"),
        };
        let name = wanted.service.as_str();
        // Not yet tried: it is the order.
        assert_eq!(
            granted(&record(&base[..5]), name),
            (wanted.clone(), false),
            "{name}"
        );
        let back = record(&base);
        assert_eq!(granted(&back, "civil"), (assignment("civil"), true));
        // Ordered again, it is tried again.
        let again = record(&[&base[..], &[ordered_anew]].concat());
        assert_eq!(granted(&again, name), (wanted.clone(), false), "{name}");
    }
}
