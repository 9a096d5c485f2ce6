//! `tombstream archive`: what waits in the ledger for a file of the archive is written now; `run` does so by itself.

use anyhow::bail;

use super::Failure;
use crate::config::Config;

#[cfg(not(feature = "parquet"))]
pub(super) async fn archive(_config: Config) -> Result<(), Failure> {
    Err(anyhow::anyhow!("this build of tombstream writes no Parquet").into())
}

#[cfg(feature = "parquet")]
pub(super) async fn archive(config: Config) -> Result<(), Failure> {
    use crate::archive::{Archivist, Written};
    use crate::wiring;
    Ok(async {
        let Some(section) = &config.archive else {
            bail!("there is no [archive] in the configuration: nothing is archived")
        };
        let pool = wiring::connect_ledger(&config.database, "tombstream-archive").await?;
        let archivist = Archivist::new(&config, section, pool)?;
        let mut all = Written::default();
        loop {
            let Written { events, files } = archivist.write().await?;
            if events == 0 {
                break;
            }
            all.events += events;
            all.files += files;
        }
        println!("{} events written into {} files of {}", all.events, all.files, section.path);
        anyhow::Ok(())
    }
    .await?)
}
