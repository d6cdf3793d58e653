"""The command `vmm`: one module per subcommand, imported when it is used."""
