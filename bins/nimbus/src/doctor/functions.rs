//! The check of functions: whether a worker process can be started.
//!
//! It starts one, as a call would, and ends it; the worker is given nothing.

use nimbus_runtime::{RunError, Runtime, RuntimeConfig};

use super::report::Check;

/// `functions`: a process with an engine in it comes up.
pub(crate) fn worker(config: &RuntimeConfig) -> Check {
    let name = "functions";
    let advice = "see whether the unit or the container forbids processes (TasksMax=, seccomp, noexec /proc), or too little memory";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Check::fail(name, format!("no runtime: {error}"), advice),
    };
    match runtime.block_on(Runtime::try_worker(config)) {
        Ok(tried) => {
            let (instances, workers) = (config.instances(), config.workers());
            let text = format!(
                "a worker started in {} ms; {instances} run at once, {workers} are kept",
                tried.took.as_millis()
            );
            if tried.confined {
                return Check::ok(name, text);
            }
            let text =
                format!("{text}; it is not kept from files, since this system has no Landlock");
            Check::warn(
                name,
                text,
                "use Linux 5.13 or newer with Landlock enabled (`lsm=landlock,...`)",
            )
        }
        Err(RunError::WorkerLost { why, .. }) => {
            Check::fail(name, format!("no worker: {why}"), advice)
        }
        Err(error) => Check::fail(name, format!("no worker: {error}"), advice),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_runtime::WorkerCommand;

    use super::super::report::Status;
    use super::*;

    #[test]
    fn a_program_that_is_no_worker_fails() {
        for program in ["/none/such", "/bin/true"] {
            let config = RuntimeConfig::new(WorkerCommand {
                program: program.into(),
                args: Vec::new(),
            });
            let check = worker(&config);
            assert_eq!(check.status, Status::Fail, "{check:?}");
            assert!(check.message.contains("it did not start"), "{check:?}");
            assert!(check.advice.is_some());
        }
    }
}
