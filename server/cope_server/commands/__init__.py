"""One module per subcommand of `cope`."""
