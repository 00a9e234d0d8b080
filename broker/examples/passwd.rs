//! A line for a password file: `passwd <user>` with the password on standard input.

use std::io::{BufRead as _, Error};

use holdfast_broker::Passwords;

fn main() -> Result<(), Error> {
    let user = std::env::args().nth(1).unwrap_or_default();
    let mut password = String::new();
    std::io::stdin().lock().read_line(&mut password)?;
    let line = Passwords::line(&user, password.trim_end_matches(['\r', '\n']).as_bytes());
    println!("{}", line.map_err(Error::other)?);
    Ok(())
}
