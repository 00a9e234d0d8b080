//! The links are really there, really cut, and gone afterwards; what a killed run left is found.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::seat::Seat;
use crate::skip::skip;

/// Far longer than a packet takes between namespaces.
const SHORT: Duration = Duration::from_millis(300);

fn networks() -> Option<Networks> {
    match Networks::make() {
        Ok(networks) => Some(networks),
        Err(why) => {
            skip("networks", &format!("no network namespaces: {why:#}"));
            None
        }
    }
}

/// Does something in a thread that has this seat.
fn at<T: Send + 'static>(seat: &Seat, work: impl FnOnce() -> T + Send + 'static) -> T {
    let seat = seat.clone();
    let thread = std::thread::spawn(move || {
        seat.take().unwrap();
        work()
    });
    thread.join().unwrap()
}

fn dial(seat: &Seat, door: SocketAddr) -> io::Result<()> {
    at(seat, move || {
        TcpStream::connect_timeout(&door, SHORT).map(|_| ())
    })
}

#[test]
fn the_link_carries_falls_silent_goes_down_and_is_mended() {
    let Some(networks) = networks() else { return };
    let station = networks.station("device").unwrap();
    let door = SocketAddr::from((Networks::CLOUD, 8883));
    let _listener = at(&networks.cloud(), move || TcpListener::bind(door).unwrap());
    let site = [networks.gateway(), station.clone()];
    for seat in &site {
        dial(seat, door).unwrap();
    }
    networks.set(Mode::Silent).unwrap();
    for seat in &site {
        let told = dial(seat, door).unwrap_err();
        assert_eq!(
            told.kind(),
            io::ErrorKind::TimedOut,
            "a silent cut says nothing"
        );
    }
    networks.set(Mode::Reset).unwrap();
    let told = dial(&networks.gateway(), door).unwrap_err();
    assert_eq!(
        told.kind(),
        io::ErrorKind::NetworkUnreachable,
        "a link that is down is known to be"
    );
    // The LAN does not depend on it.
    let local = SocketAddr::from((Networks::GATEWAY, 8883));
    let _gateway = at(&networks.gateway(), move || {
        TcpListener::bind(local).unwrap()
    });
    dial(&station, local).unwrap();
    networks.set(Mode::Open).unwrap();
    for seat in &site {
        dial(seat, door).unwrap();
    }
}

#[test]
fn what_a_killed_run_left_is_removed_and_what_lives_is_not() {
    let Some(living) = networks() else { return };
    // A process that has ended stands for the killed run.
    let mut maker = Command::new("true").spawn().unwrap();
    maker.wait().unwrap();
    let left = format!("{OURS}-{}-1-cloud", maker.id());
    ip(&["netns", "add", &left]).unwrap();
    let mut orphan = Command::new("nsenter")
        .arg(format!("--net={NAMESPACES}/{left}"))
        .args(["--", "sleep", "60"])
        .spawn()
        .unwrap();
    // Until it has entered it is not in there.
    for _ in 0..200 {
        match output("ip", &["netns", "pids", &left]) {
            Ok(pids) if !pids.is_empty() => break,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    sweep().unwrap();
    assert!(!orphan.wait().unwrap().success(), "the orphan still ran");
    let now = namespaces();
    assert!(!now.contains(&left));
    assert!(now.contains(&living.name("gateway")));
    let tag = living.tag.clone();
    drop(living);
    assert!(!namespaces().iter().any(|name| name.starts_with(&tag)));
}
