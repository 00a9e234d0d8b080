//! A line for a password file: `passwd <user>` with the password on standard input.

use std::error::Error;
use std::io::BufRead as _;

use holdfast_broker::Passwords;

fn main() -> Result<(), Box<dyn Error>> {
    let user = std::env::args().nth(1);
    let user = user.ok_or("usage: passwd <user>, with the password on standard input")?;
    let mut password = String::new();
    std::io::stdin().lock().read_line(&mut password)?;
    let line = Passwords::line(&user, password.trim_end_matches(['\r', '\n']).as_bytes());
    println!("{}", line.map_err(|fault| fault.to_string())?);
    Ok(())
}
