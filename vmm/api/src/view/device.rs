//! A VM's disks and network cards as clients see them.

use protocol::{
    DiskCounters, DiskFigures, DiskSpec, MacAddress, NetConfig, NetCounters, NetState, TapName,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Its file on the host.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the host's page cache is left out.
    pub direct: bool,
    /// Whether the guest gets the file as it stands even where that looks like no raw image.
    #[serde(default)]
    pub raw: bool,
    /// Its size.
    pub size_bytes: u64,
    /// What the guest did with it.
    pub counters: DiskCounters,
    /// What the kernel said of the last request that its file failed.
    #[serde(default)]
    pub last_error: Option<String>,
}

impl DiskView {
    /// A disk, as it is set up and as it was last seen.
    #[must_use]
    pub fn new(spec: &DiskSpec, figures: DiskFigures) -> Self {
        Self {
            path: spec.path.clone(),
            read_only: spec.read_only,
            direct: spec.direct,
            raw: spec.raw,
            size_bytes: figures.size_bytes,
            counters: figures.counters,
            last_error: figures.last_error.map(os_error),
        }
    }
}

fn os_error(number: i32) -> String {
    std::io::Error::from_raw_os_error(number).to_string()
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetView {
    /// The tap that it is connected to.
    pub tap: TapName,
    /// Its address.
    pub mac: MacAddress,
    /// The most bytes a second in each direction.
    pub bytes_per_s: Option<u64>,
    /// Whether the guest has a driver that is ready.
    pub has_driver: bool,
    /// What went through it.
    pub counters: NetCounters,
}

impl NetView {
    /// A card, as it is set up and as it was last seen.
    #[must_use]
    pub fn new(config: &NetConfig, state: NetState) -> Self {
        Self {
            tap: config.tap.clone(),
            mac: config.mac,
            bytes_per_s: config.bytes_per_s,
            has_driver: state.has_driver,
            counters: state.counters,
        }
    }
}
