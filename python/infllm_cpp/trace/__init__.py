"""Which blocks every layer selects: files of it (`file`), what follows from them (`analysis`, `report`)."""

from .file import Trace, TraceHeader, TraceReader, TraceWriter, read_trace

__all__ = ["Trace", "TraceHeader", "TraceReader", "TraceWriter", "read_trace"]
