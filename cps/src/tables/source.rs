//! One reading verb over both kinds of transaction, so that each query is written once. Called by
//! `tables` alone.

use holdfast_store::StoreError;
use redb::{Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

/// Something tables can be read from.
pub(crate) trait Source: Copy {
    /// An open table.
    type Table<K: Key + 'static, V: Value + 'static>: ReadableTable<K, V>;

    /// Opens a table, for as long as the answer lives.
    fn open<K: Key + 'static, V: Value + 'static>(
        self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<Self::Table<K, V>, StoreError>;
}

impl<'t> Source for &'t WriteTransaction {
    type Table<K: Key + 'static, V: Value + 'static> = redb::Table<'t, K, V>;

    fn open<K: Key + 'static, V: Value + 'static>(
        self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<Self::Table<K, V>, StoreError> {
        Ok(self.open_table(table)?)
    }
}

impl Source for &ReadTransaction {
    type Table<K: Key + 'static, V: Value + 'static> = redb::ReadOnlyTable<K, V>;

    fn open<K: Key + 'static, V: Value + 'static>(
        self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<Self::Table<K, V>, StoreError> {
        Ok(self.open_table(table)?)
    }
}
