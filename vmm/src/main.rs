//! The program `ballonet`: see `ballonet --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballonet::main()
}
