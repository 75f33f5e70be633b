"""Datasets and input files as Ray Data datasets. Its modules import Ray; `dray.pipelines` imports them when needed."""
