"""Other people's datasets in the layouts they come in; one small file a family, all of them in `registry.IMPORTERS`."""
