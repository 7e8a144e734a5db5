"""Published networks whose weights come by path: those that judge pictures and clips, and those that read captions."""
