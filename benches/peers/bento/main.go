// Bento with the components that the bench needs and no others: its source is what it was released as.
package main

import (
	"context"

	_ "github.com/warpstreamlabs/bento/public/components/elasticsearch"
	_ "github.com/warpstreamlabs/bento/public/components/kafka"
	_ "github.com/warpstreamlabs/bento/public/components/pure"
	"github.com/warpstreamlabs/bento/public/service"
)

func main() {
	service.RunCLI(context.Background())
}
