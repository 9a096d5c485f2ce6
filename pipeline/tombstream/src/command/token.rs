//! `tombstream token`: a new random token for the api.

use anyhow::bail;
use rand::RngCore as _;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose it is: the actor of each flip made with it.
    name: String,
}

/// Prints the token, which nobody keeps, and the line for `tokens_file`, which is no secret.
pub(super) fn token(args: &Args) -> anyhow::Result<()> {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{} {}", args.name, tombstream_api::hash_token(&token));
    // A name that the api would refuse is refused here, by the same code.
    if tombstream_api::Tokens::parse(&line, "").is_err() {
        bail!(
            "{:?} can't name a token: use up to 64 letters, digits, `.`, `_`, `@` and `-`, and \
             not `anonymous`, who asks without one",
            args.name
        );
    }
    println!("token: {token}");
    println!("line for tokens_file: {line}");
    Ok(())
}
