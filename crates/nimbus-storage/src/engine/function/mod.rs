//! What a function asks of a transaction: documents by id, queries as JSON that stream or page, and
//! what was read, to be watched afterwards.
//!
//! The rules are those of convex.md 2.3-2.5, 5.4-5.6, 5.9 and 6.1-6.3. JavaScript, syscalls and the wire
//! format of answers are not known here; an error of the caller's is a [`FunctionError::User`].

mod bounds;
mod documents;
mod error;
mod expr;
mod page;
mod past;
mod query;
mod reader;
mod stream;
mod transact;
mod usage;
mod watch;

pub use error::{FunctionError, FunctionResult};
pub use page::{FunctionPage, PageRequest, PageStatus};
pub use query::FunctionQuery;
pub use stream::QueryStream;
pub use transact::{CommitStamp, Ran};
pub use usage::{
    MAX_FUNCTION_BYTES_READ, MAX_FUNCTION_BYTES_WRITTEN, MAX_FUNCTION_DOCUMENTS_READ,
    MAX_FUNCTION_DOCUMENTS_WRITTEN, MAX_FUNCTION_QUERIES, TransactionUsage,
};
pub use watch::{ReadWatch, ReadsAt};
