//! The agent's daemon.

use std::{path::PathBuf, process::ExitCode};

use agentd::{
    config::{Config, LogFormat},
    fleet::migrate,
    heap, runtime,
    telemetry::log::{self, Format},
};
use clap::Parser;

/// Gives the workloads of this node routed addresses, and advertises their blocks over BGP.
#[derive(Debug, Parser)]
#[command(
    name = "agentd",
    version,
    after_help = "Exit status:\n  \
        0  stopped by SIGTERM or SIGINT, or --check found the configuration valid\n  \
        1  failed while running\n  \
        2  the configuration or the command line cannot be used\n  \
        3  another agentd uses the state directory or the API socket\n  \
        4  cannot listen: a BGP port, the metrics port or the API socket\n  \
        5  a capability is missing (CAP_NET_ADMIN, CAP_SYS_ADMIN)\n  \
        6  the state cannot be read or written\n\n\
        SIGHUP reads the configuration again. AGENTD_LOG overrides log.level."
)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/agentd/agentd.toml")]
    config: PathBuf,
    /// Check the configuration and exit: 0, or 2 with file, line, key and reason of each error.
    #[arg(long)]
    check: bool,
    /// Move the blocks of this node to the store of the configuration (ipam.store) and exit. The
    /// agent must be stopped; workloads go on.
    #[arg(long, conflicts_with = "check")]
    migrate_store: bool,
}

fn main() -> ExitCode {
    heap::set_up();
    let arguments = Arguments::parse();
    let read = Config::read(&arguments.config)
        .and_then(|text| Ok((Config::parse(&text, &arguments.config)?, text)));
    let (config, text) = match read {
        Ok(read) => read,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        println!("{config}");
        return ExitCode::SUCCESS;
    }
    let format = match config.log.format {
        LogFormat::Auto => Format::Auto,
        LogFormat::Json => Format::Json,
        LogFormat::Text => Format::Text,
        LogFormat::Journald => Format::Journald,
    };
    if let Err(error) = log::init(format, &config.log.level) {
        eprintln!("agentd: {error}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("agentd: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.migrate_store {
        return match runtime.block_on(migrate::run(&config)) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("agentd: {error}");
                ExitCode::from(6)
            }
        };
    }
    let result = runtime.block_on(runtime::run(config, text));
    // What still runs is calls of clients that went away without closing.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("{error}");
            } else {
                eprintln!("agentd: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
