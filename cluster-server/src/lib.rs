//! Placeholder until the next commit.
pub mod mesh;
