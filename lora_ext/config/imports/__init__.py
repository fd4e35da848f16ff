"""Settings that people bring from other trainers, read by their content: a module a format, one result."""

from lora_ext.config.imports.recognise import import_file, import_text
from lora_ext.config.imports.result import Imported, Note, NoteKind

__all__ = ["Imported", "Note", "NoteKind", "import_file", "import_text"]
