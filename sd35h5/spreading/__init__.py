"""Work over many samples: in threads of this process, or by the workers of a running dask.distributed scheduler."""
