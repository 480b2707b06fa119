"""What every benchmark uses: servers, clients, loads, models, processes, reports."""
