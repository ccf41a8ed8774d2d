from service.cli.commands import main

if __name__ == "__main__":  # uvicorn's workers import this once more
    main()
