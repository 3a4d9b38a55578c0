//! `nimbus auth`: the admin token's file, offline.

use nimbus_auth::{Environment, TokenFile};

use crate::cli::{AuthCommand, Format};
use crate::output;

/// Runs one of the commands.
pub(crate) fn run(command: AuthCommand) -> anyhow::Result<()> {
    let path = Environment::system().token_path()?;
    match command {
        AuthCommand::Token => output::line(TokenFile::load(&path)?.token().expose_secret()),
        AuthCommand::RotateAdmin { format } => {
            let rotation = TokenFile::rotate(&path)?;
            let file = &rotation.file;
            let rotated = file.rotated_at().map(|t| t.to_string()).unwrap_or_default();
            let aside = rotation.set_aside.as_ref();
            match format {
                Format::Json => output::json(&serde_json::json!({
                    "generation": file.generation(),
                    "path": file.path(),
                    "rotatedAt": rotated,
                    "setAside": aside.map(|a| a.path.clone()),
                    "restartRequired": true,
                })),
                Format::Text => {
                    output::line(&format!("generation: {}", file.generation()))?;
                    output::line(&format!("path:       {}", file.path().display()))?;
                    output::line(&format!("rotated at: {rotated}"))?;
                    if let Some(aside) = aside {
                        output::line(&format!(
                            "the old file could not be read ({}) and was kept as {}",
                            aside.fault,
                            aside.path.display()
                        ))?;
                    }
                    output::line("A running server keeps the old token until it is restarted.")
                }
            }
        }
    }
}
