//! `tombstream token`: a new random token for the api.

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
    tombstream_api::Tokens::parse(&line, "of this name")?;
    println!("token: {token}");
    println!("line for tokens_file: {line}");
    Ok(())
}
