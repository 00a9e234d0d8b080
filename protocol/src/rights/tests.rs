//! Rights against an independently written model, and the list of known escapes.
