//! Pipeline files, stages, actors and their supervision, checkpoints and resume.
