//! A worker for the tests of this crate; the server is its own worker (`nimbus runtime-worker`).

fn main() -> std::process::ExitCode {
    nimbus_runtime::engine::main()
}
