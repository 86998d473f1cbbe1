"""What reports share: tables as text and as Markdown, the machine in one line, the look of pictures."""
