//! `hv test`: runs the tests that an image carries, each in a VM of its own.
//!
//! The runner is `conformance`'s; here are the image, the lock-down and the errors.

use crate::cli::TestOptions;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::images;
use crate::lockdown::{self, Kept};
use conformance::{Hv, RunError, Suite, SuiteError};
use hv_core::Image;
use std::io::{self, ErrorKind};

/// What `hv test` exits with if a test did not pass.
const NOT_ALL_PASSED: u8 = 1;

/// Runs the tests; gives the exit code.
///
/// # Errors
///
/// They could not be run, or their verdicts not written.
pub(crate) fn run(options: &TestOptions) -> Result<u8, Failure> {
    hv_core::prepare().map_err(|error| Failure::cannot("the host does not let hv make sandboxes", error))?;
    let (path, runner) = (&options.image, &options.runner);
    let bytes: &'static [u8] = images::bytes(path)?.into_owned().leak(); // it is one image, until hv ends
    let suite = Image::parse(bytes).map_err(|error| images::bad(path, error)).and_then(|_| {
        Suite::from_image(bytes).map_err(|error| match error {
            SuiteError::NoTests => no_tests(options),
            other => images::bad(path, other),
        })
    })?;
    let junit = runner
        .open_junit()
        .map_err(|error| Failure::cannot("the file of --junit could not be made", error))?;
    lockdown::apply(&Kept::default())
        .map_err(|error| Failure::cannot("the host does not let hv give up its rights", error))?;
    match runner.run(&suite, &Hv::default(), junit, &mut io::stdout().lock()) {
        Ok(true) => Ok(0),
        Ok(false) => Ok(NOT_ALL_PASSED),
        Err(RunError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Cause::ReaderGone.code()),
        Err(error) => Err(Failure::cannot("the tests could not be run", error)),
    }
}

fn no_tests(options: &TestOptions) -> Failure {
    let shown = options.image.display();
    Failure::new(Cause::BadImage, format!("`{shown}` is a guest without tests"))
        .advise("declare tests with guest_sdk::tests! and make guest_sdk::testing::main the entry, as `hv test --help` shows\n`hv new --with-tests` writes a crate with both")
}
