// SPDX-License-Identifier: Apache-2.0

// Keys of a test server: nats_keys DIR writes into the folder
//
//	user.nk, user.pub                 the seed of a user's NKey and its public half; stranger.nk, stranger.pub: of one whom the server does not know
//	resolver.conf                     an operator and an account with JetStream, for a server to include
//	user.creds, stranger.creds        credentials of that account's user, and of an account that the operator does not know
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "nats_keys:", err)
		os.Exit(1)
	}
	return value
}

func public(k nkeys.KeyPair) string { return must(k.PublicKey()) }

func write(name string, data []byte) {
	must(0, os.WriteFile(filepath.Join(os.Args[1], name), data, 0o600))
}

func user(name string) nkeys.KeyPair {
	k := must(nkeys.CreateUser())
	write(name+".nk", must(k.Seed()))
	write(name+".pub", []byte(public(k)))
	return k
}

func credentials(name string, k, account nkeys.KeyPair) {
	claims := jwt.NewUserClaims(public(k))
	claims.Name = name
	write(name+".creds", must(jwt.FormatUserConfig(must(claims.Encode(account)), must(k.Seed()))))
}

func main() {
	operator, account, system := must(nkeys.CreateOperator()), must(nkeys.CreateAccount()), must(nkeys.CreateAccount())
	claims := jwt.NewAccountClaims(public(account))
	claims.Name = "A"
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: 64 << 20, DiskStorage: 1 << 30, Streams: -1, Consumer: -1}
	write("resolver.conf", []byte(fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n",
		must(jwt.NewOperatorClaims(public(operator)).Encode(operator)), public(system),
		public(account), must(claims.Encode(operator)), public(system), must(jwt.NewAccountClaims(public(system)).Encode(operator)))))
	credentials("user", user("user"), account)
	credentials("stranger", user("stranger"), must(nkeys.CreateAccount()))
}
