"""Where jobs are kept: documents for people and other tools, stores for commits."""
