// SPDX-License-Identifier: Apache-2.0

// A server that speaks MongoDB's protocol, for tests: FerretDB with its SQLite backend.
//
//	mongodb_server ADDRESS DIR [CERTIFICATE KEY CA]     listens there (with TLS when these are given) and keeps its data in DIR until it gets SIGTERM
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	config := ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: os.Args[1]},
		Handler:   "sqlite",
		SQLiteURL: "file:" + os.Args[2] + "/",
	}
	if len(os.Args) > 5 {
		config.Listener = ferretdb.ListenerConfig{TLS: os.Args[1], TLSCertFile: os.Args[3], TLSKeyFile: os.Args[4], TLSCAFile: os.Args[5]}
	}
	server, err := ferretdb.New(&config)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = server.Run(ctx)
	}
	if err != nil && err != context.Canceled {
		fmt.Fprintln(os.Stderr, "mongodb_server:", err)
		os.Exit(1)
	}
}
