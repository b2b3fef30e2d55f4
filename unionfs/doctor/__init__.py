"""What this machine allows and lacks for `unionfs run`: tried out (`machine`), judged and mended (`diagnosis`)."""
