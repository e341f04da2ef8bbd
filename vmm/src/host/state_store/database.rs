//! What is kept, in a transactional database.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `format` | `version`, `place` | the version as a number; the socket of the host whose state this is |
//! | `host` | `settings` | what `set host` changed |
//! | `vms` | a VM's name | its definition |
//! | `standings` | a VM's name | whether it is to run |
//! | `adoptions` | a VM's name | a QEMU that was adopted; older programs have made no such table |
//! | `tokens` | a token's name | what is kept of it; older programs have made no such table |
//!
//! Values are JSON. A commit returns once the disk has it, and what a loss of power leaves is what one of the
//! commits left, whole: the last that returned or one after it.

use super::record::{Adoption, Definition, Kept, Standing, Step, VERSION};
use crate::host::tokens::TokenRecord;
use api::{HostChange, TokenName};
use protocol::VmName;
use redb::{
    Builder, Database as Redb, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use thiserror::Error;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const FORMAT: Table = TableDefinition::new("format");
const HOST: Table = TableDefinition::new("host");
const VMS: Table = TableDefinition::new("vms");
const STANDINGS: Table = TableDefinition::new("standings");
const ADOPTIONS: Table = TableDefinition::new("adoptions");
const TOKENS: Table = TableDefinition::new("tokens");
const VERSION_KEY: &str = "version";
const PLACE_KEY: &str = "place";
const SETTINGS_KEY: &str = "settings";
/// Bytes of the file that are held in memory: all of it, mostly.
const CACHE_BYTES: usize = 1 << 20;

/// Why what is kept cannot be read or written.
#[derive(Debug, Error)]
pub(super) enum DatabaseError {
    #[error("another process has it open")]
    InUse,
    #[error("its format has version {found}, and this program knows {VERSION}: use a newer one")]
    Newer { found: u32 },
    #[error("it is the state of the host at {0}")]
    OfAnotherPlace(String),
    #[error("its {table} '{key}' is not understood")]
    NotUnderstood {
        table: &'static str,
        key: String,
        source: serde_json::Error,
    },
    #[error("what is to be kept of '{key}' is no text")]
    NotText {
        key: String,
        source: serde_json::Error,
    },
    #[error("its {0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Database(#[from] Box<redb::Error>),
}

/// All of redb's errors are of this kind in the end.
pub(super) fn database(error: impl Into<redb::Error>) -> DatabaseError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => DatabaseError::InUse,
        other => Box::new(other).into(),
    }
}

/// An open database.
#[derive(Debug)]
pub(super) struct Database(Redb);

impl Database {
    /// Makes one in storage that holds nothing.
    pub(super) fn make(storage: impl StorageBackend, place: &str) -> Result<Self, DatabaseError> {
        let new = Self(open(storage)?);
        new.transaction(|write| {
            write_value(write, FORMAT, VERSION_KEY, &VERSION)?;
            write_value(write, FORMAT, PLACE_KEY, &place)?;
            for table in [HOST, VMS, STANDINGS, TOKENS, ADOPTIONS] {
                write.open_table(table).map_err(database)?;
            }
            Ok(())
        })?;
        Ok(new)
    }

    /// Opens one that was made for a place, and reads it.
    pub(super) fn open(
        storage: impl StorageBackend,
        place: &str,
    ) -> Result<(Self, Kept), DatabaseError> {
        let database = Self(open(storage)?);
        database.check(place)?;
        let kept = database.read()?;
        Ok((database, kept))
    }

    fn check(&self, place: &str) -> Result<(), DatabaseError> {
        let mut format = self.values::<serde_json::Value>(FORMAT)?;
        let mut value = |key| format.remove(key).ok_or(DatabaseError::Missing(key));
        let (version, of) = (value(VERSION_KEY)?, value(PLACE_KEY)?);
        let found = version.as_u64().unwrap_or(u64::MAX);
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        match of.as_str() {
            _ if found > VERSION => Err(DatabaseError::Newer { found }),
            Some(of) if of == place => Ok(()),
            _ => Err(DatabaseError::OfAnotherPlace(of.to_string())),
        }
    }

    fn read(&self) -> Result<Kept, DatabaseError> {
        let mut standings = self.values::<Standing>(STANDINGS)?;
        let definitions = self.values::<Definition>(VMS)?.into_iter();
        let with_standing = |(name, definition): (String, _)| {
            let standing = standings.remove(&name).unwrap_or_default();
            let name = VmName::try_from(name).map_err(|_not_one| DatabaseError::Missing("name"))?;
            Ok((name, (definition, standing)))
        };
        let definitions = definitions.map(with_standing);
        let settings = self.values::<HostChange>(HOST)?.remove(SETTINGS_KEY);
        Ok(Kept {
            settings: settings.unwrap_or_default(),
            definitions: definitions.collect::<Result<_, DatabaseError>>()?,
            tokens: self.tokens()?,
            adoptions: self.adoptions()?,
        })
    }

    fn adoptions(&self) -> Result<BTreeMap<VmName, Adoption>, DatabaseError> {
        let adoptions = self.values::<Adoption>(ADOPTIONS)?.into_values();
        Ok(adoptions
            .map(|adoption| (adoption.name.clone(), adoption))
            .collect())
    }

    fn tokens(&self) -> Result<BTreeMap<TokenName, TokenRecord>, DatabaseError> {
        let tokens = self.values::<TokenRecord>(TOKENS)?.into_iter();
        let named = tokens.map(|(name, record)| match TokenName::try_from(name) {
            Ok(name) => Ok((name, record)),
            Err(_not_one) => Err(DatabaseError::Missing("name")),
        });
        named.collect()
    }

    fn values<T: DeserializeOwned>(
        &self,
        table: Table,
    ) -> Result<BTreeMap<String, T>, DatabaseError> {
        let read = self.0.begin_read().map_err(database)?;
        let rows = match read.open_table(table) {
            // It came later than this file.
            Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            other => other.map_err(database)?,
        };
        let mut values = BTreeMap::new();
        for row in rows.iter().map_err(database)? {
            let (key, value) = row.map_err(database)?;
            let key = key.value().to_owned();
            let value = serde_json::from_slice(value.value()).map_err(|source| {
                let (table, key) = (name_of(table), key.clone());
                DatabaseError::NotUnderstood { table, key, source }
            })?;
            values.insert(key, value);
        }
        Ok(values)
    }

    /// Takes steps, all or none of them. When this returns the disk has them.
    pub(super) fn commit<'a>(
        &self,
        steps: impl IntoIterator<Item = &'a Step>,
    ) -> Result<(), DatabaseError> {
        self.transaction(|write| steps.into_iter().try_for_each(|step| take(write, step)))
    }

    /// Makes it hold this and nothing else.
    pub(super) fn replace(&self, kept: &Kept) -> Result<(), DatabaseError> {
        self.transaction(|write| {
            for table in [VMS, STANDINGS, TOKENS, ADOPTIONS] {
                let mut rows = write.open_table(table).map_err(database)?;
                rows.retain(|_, _| false).map_err(database)?;
            }
            write_value(write, HOST, SETTINGS_KEY, &kept.settings)?;
            for (name, (definition, standing)) in &kept.definitions {
                write_value(write, VMS, name.as_str(), definition)?;
                write_value(write, STANDINGS, name.as_str(), standing)?;
            }
            for (name, adoption) in &kept.adoptions {
                write_value(write, ADOPTIONS, name.as_str(), adoption)?;
            }
            for (name, record) in &kept.tokens {
                write_value(write, TOKENS, name.as_str(), record)?;
            }
            Ok(())
        })
    }

    /// As a newer program would have it.
    #[cfg(test)]
    pub(super) fn set_version(&self, version: u32) {
        let set = self.transaction(|write| write_value(write, FORMAT, VERSION_KEY, &version));
        set.expect("the disk takes it");
    }

    fn transaction(
        &self,
        act: impl FnOnce(&WriteTransaction) -> Result<(), DatabaseError>,
    ) -> Result<(), DatabaseError> {
        let write = self.0.begin_write().map_err(database)?;
        // Dropped before its commit, nothing of it is done.
        act(&write)?;
        write.commit().map_err(database)
    }
}

fn open(storage: impl StorageBackend) -> Result<Redb, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.create_with_backend(storage).map_err(database)
}

fn name_of(table: Table) -> &'static str {
    match redb::TableHandle::name(&table) {
        "format" => "format",
        "host" => "setting",
        "vms" => "VM",
        "tokens" => "token",
        "adoptions" => "adopted QEMU",
        _ => "standing of VM",
    }
}

fn take(write: &WriteTransaction, step: &Step) -> Result<(), DatabaseError> {
    match step {
        Step::Settings(settings) => write_value(write, HOST, SETTINGS_KEY, settings),
        Step::Define(name, definition) => write_value(write, VMS, name.as_str(), definition),
        Step::Stand(name, standing) => match is_there(write, name)? {
            true => write_value(write, STANDINGS, name.as_str(), standing),
            false => Ok(()),
        },
        Step::Forget(name) => [VMS, STANDINGS]
            .into_iter()
            .try_for_each(|table| remove(write, table, name.as_str())),
        Step::Adopt(adoption) => write_value(write, ADOPTIONS, adoption.name.as_str(), adoption),
        Step::Release(name) => remove(write, ADOPTIONS, name.as_str()),
        Step::AddToken(name, record) => write_value(write, TOKENS, name.as_str(), record),
        Step::RemoveToken(name) => remove(write, TOKENS, name.as_str()),
    }
}

fn remove(write: &WriteTransaction, table: Table, key: &str) -> Result<(), DatabaseError> {
    let mut rows = write.open_table(table).map_err(database)?;
    rows.remove(key).map_err(database)?;
    Ok(())
}

fn is_there(write: &WriteTransaction, name: &VmName) -> Result<bool, DatabaseError> {
    let rows = write.open_table(VMS).map_err(database)?;
    let row = rows.get(name.as_str()).map_err(database)?;
    Ok(row.is_some())
}

fn write_value<T: Serialize + ?Sized>(
    write: &WriteTransaction,
    table: Table,
    key: &str,
    value: &T,
) -> Result<(), DatabaseError> {
    let json = serde_json::to_vec(value).map_err(|source| DatabaseError::NotText {
        key: key.to_owned(),
        source,
    })?;
    let mut rows = write.open_table(table).map_err(database)?;
    rows.insert(key, json.as_slice()).map_err(database)?;
    Ok(())
}
