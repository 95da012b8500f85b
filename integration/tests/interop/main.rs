//! agentd with other BGP speakers, as real programs in network namespaces.
//!
//! A case is written once and runs for every daemon that can do it, as a test of its own:
//! `SUBJECT::CAPABILITY::DAEMON`. For a daemon that cannot, the reason stands beside it, and the
//! test `SUBJECT::CAPABILITY::not_supported::DAEMON` only writes that down. What came out of all
//! of them is `docs/interop.md`.

/// Tests of one capability. `case` is called with a [`world::Plan`] for each daemon named.
macro_rules! interop {
    ($capability:ident: $case:expr; $($daemon:ident)* $(; no $other:ident: $why:literal)*) => {
        mod $capability {
            $(
                #[test]
                fn $daemon() {
                    crate::world::run(stringify!($capability), stringify!($daemon), $case);
                }
            )*
            mod not_supported {
                $(
                    #[test]
                    fn $other() {
                        crate::world::not_supported(
                            stringify!($capability),
                            stringify!($other),
                            $why,
                        );
                    }
                )*
            }
        }
    };
}

mod ending;
mod opening;
mod reflection;
mod refresh;
mod restart;
mod roles;
mod routes;
mod scale;
mod world;
