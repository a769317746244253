"""What all reports share: the document with its tables and figures, as Markdown and as one HTML page."""
