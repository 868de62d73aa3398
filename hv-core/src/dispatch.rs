//! From a call's number to the function that serves it.
//!
//! The trait, and the `match` over it, come from the table in `hv_abi::call`, so a call that is added there is
//! served the moment its method is written here, and answers `UNKNOWN_CALL` until then.

use hv_abi::{Call, Features, Status, for_each_call};

/// What a call gives: its value, or why not.
pub(crate) type CallResult = Result<u64, Status>;

macro_rules! is_served {
    (served) => {
        true
    };
    (later) => {
        false
    };
}

macro_rules! hypercalls {
    ($($(#[$doc:meta])+ $number:literal $name:ident $stem:ident($($argument:ident),*) -> $result:ident,
       [$($error:ident),*], $crossing:ident, $served:ident;)+) => {
        /// The host's half of each hypercall. Arguments are the guest's claims.
        pub(crate) trait Hypercalls {
            $($(#[$doc])+ fn $stem(&mut self, $($argument: u64),*) -> CallResult {
                let _ = ($($argument,)*);
                Err(Status::UNKNOWN_CALL)
            })+
        }

        /// Makes a call by number, if its feature is in force. Arguments that it does not have must be zero.
        pub(crate) fn dispatch(
            host: &mut impl Hypercalls,
            features: Features,
            number: u32,
            arguments: [u64; 5],
        ) -> CallResult {
            match number {
                $($number if is_served!($served) && features.contains(Call::$name.feature()) => {
                    let mut arguments = arguments.into_iter();
                    $(let $argument = arguments.next().expect("a call has at most five arguments");)*
                    if arguments.any(|unused| unused != 0) {
                        return Err(Status::BAD_ARGUMENT);
                    }
                    host.$stem($($argument),*)
                })+
                _ => Err(Status::UNKNOWN_CALL),
            }
        }
    };
}
for_each_call!(hypercalls);

#[cfg(test)]
mod tests {
    use super::*;
    use hv_abi::call::CALLS;

    struct Nothing;
    impl Hypercalls for Nothing {}

    struct VersionOnly;
    impl Hypercalls for VersionOnly {
        fn version(&mut self) -> CallResult {
            Ok(7)
        }

        fn event_send(&mut self, _: u64) -> CallResult {
            Ok(8)
        }
    }

    #[test]
    fn a_call_whose_feature_is_not_in_force_is_unknown() {
        let send = |features| dispatch(&mut VersionOnly, features, Call::EVENT_SEND.0, [0; 5]);
        assert_eq!(send(Features::EVENTS), Ok(8));
        assert_eq!(send(Features::all() - Features::EVENTS), Err(Status::UNKNOWN_CALL));
    }

    #[test]
    fn a_call_without_a_method_is_unknown() {
        for call in CALLS {
            assert_eq!(
                dispatch(&mut Nothing, Features::all(), call.call.0, [0; 5]),
                Err(Status::UNKNOWN_CALL),
                "{}",
                call.name
            );
        }
        assert_eq!(
            dispatch(&mut Nothing, Features::all(), CALLS.len() as u32, [0; 5]),
            Err(Status::UNKNOWN_CALL)
        );
        assert_eq!(dispatch(&mut Nothing, Features::all(), u32::MAX, [0; 5]), Err(Status::UNKNOWN_CALL));
    }

    #[test]
    fn arguments_that_a_call_does_not_have_must_be_zero() {
        assert_eq!(dispatch(&mut VersionOnly, Features::empty(), 0, [0; 5]), Ok(7));
        for i in 0..5 {
            let mut arguments = [0; 5];
            arguments[i] = 1 << 63;
            assert_eq!(
                dispatch(&mut VersionOnly, Features::empty(), 0, arguments),
                Err(Status::BAD_ARGUMENT),
                "argument {i}"
            );
        }
    }
}
