//! Certificate vectors, made here: the good, and each fault alone.
