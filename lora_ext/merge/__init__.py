"""Operations on files: into a checkpoint, networks together, resize, extract, check."""
